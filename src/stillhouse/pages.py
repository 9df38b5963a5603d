"""Pages of verdicts as Markdown: what the refresh's and the watch's pages are put together from."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence

from matplotlib.figure import Figure

from stillhouse.records import Reason, TeacherWeights, Verdict
from stillhouse.registry import Registry, names
from stillhouse.registry.connection import without_credentials
from stillhouse.shown import code
from stillhouse.shown import markdown as md
from stillhouse.teachers.mixture_weights import MIN_RECORDED_CHANGE, slice_shares

__all__ = ["first", "heading", "line", "links", "number", "picture", "png", "reasons", "table", "weights_section"]


def line(verdict: Verdict) -> str:
    """The verdict in a list of artifacts."""
    return f"{verdict.result.replace('_', ' ')}, as of {verdict.as_of:%Y-%m-%d %H:%M} UTC"


def heading(verdict: Verdict) -> str:
    """The title of a page, with the verdict's summary, moment and id."""
    outcome = verdict.result.replace("_", " ")
    return (
        f"# {verdict.agent}: {outcome}\n\n{md(verdict.summary)}\n\nas of {verdict.as_of:%Y-%m-%d %H:%M} UTC, "
        f"verdict {code(verdict.verdict_id)}"
    )


def reasons(reasons: tuple[Reason, ...]) -> str:
    """A list: the cells of Prefect's tables do not wrap, and a sentence is cut off."""
    return "\n".join(f"- {'**crossed**' if r.failed else 'held'} {code(r.measure)}: {md(r.text)}" for r in reasons)


def links(registry: Registry, run_id: str, *, docs: bool = True) -> str:
    """The MLflow run and its page of data checks: links where MLflow is a server, else where they are to be found.

    :param docs: whether there is such a page.
    """
    if not registry.uri.startswith("http"):
        return f"MLflow run `{run_id}`" + (f", data checks in its artifact `{names.DATA_DOCS}`" if docs else "")
    page = f"{without_credentials(registry.uri)}/#/experiments/{registry.experiment_id}/runs/{run_id}"
    run = f"[MLflow run `{run_id}`]({page})"
    return f"{run} · [data checks]({page}/artifacts/{names.DATA_DOCS})" if docs else run


def table(header: str, rows: list[str]) -> str:
    """A table; its header has no pipes but its own."""
    return "\n".join([header, "|" + "---|" * (len(re.findall(r"(?<!\\)\|", header)) - 1), *rows])


def number(value: float | None) -> str:
    """Four digits; nothing for None."""
    return "" if value is None else f"{value:.4g}"


def picture(png: bytes, what: str) -> str:
    """A PNG within the page."""
    return f"![{what}](data:image/png;base64,{base64.b64encode(png).decode()})"


def png(figure: Figure) -> bytes:
    """A figure as it is shown on a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def first(values: Sequence[str], most: int = 10) -> str:
    """The first so many values, as one cell."""
    return md(", ".join(values[:most]))


def weights_section(weights: TeacherWeights) -> str:
    count, everywhere = weights.everywhere.stretches, slice_shares(weights)
    rows = [
        f"| {md(name)} | {start:.1%} | {share:.1%} | {weights.losses[name] / count if count else 0:.4f} |"
        for name, start, share in zip(weights.teachers, weights.start, everywhere, strict=True)
    ]
    parts = ["## Weights of the teachers", _weights_rest_on(weights)]
    parts.append(table("| teacher | at the start | share | log loss |", rows))
    slices = [(name, slice_shares(weights, name)) for name in weights.slices]
    own = [(name, shares) for name, shares in slices if abs(shares - everywhere).max() >= MIN_RECORDED_CHANGE]
    if own:
        header = "| slice | outcomes | " + " | ".join(map(md, weights.teachers)) + " |"
        rows = [
            f"| {md(name)} | {weights.slices[name].outcomes:,} | " + " | ".join(f"{s:.1%}" for s in shares) + " |"
            for name, shares in own
        ]
        parts.append(table(header, rows))
    return "\n\n".join(parts)


def _weights_rest_on(weights: TeacherWeights) -> str:
    count = weights.everywhere.outcomes
    text = {
        "file": "As the agent file says.",
        "outcomes": f"By {count:,} outcomes, in the order they became known.",
        "agreement": f"By how far the teachers agree, which is weaker than outcomes, and by {count:,} outcomes.",
    }
    if not count:
        return text[weights.by]
    return (
        f"{text[weights.by]} Log loss of the mean: {weights.losses[''] / count:.4f} as weighted at each time, "
        f"{weights.losses['start'] / count:.4f} as weighted at the start."
    )
