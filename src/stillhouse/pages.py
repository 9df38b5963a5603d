"""Format the parts of Markdown pages: the pages of a refresh and of a watch are made of them."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence

from matplotlib.figure import Figure

from stillhouse.records import Reason, TeacherWeights, Verdict
from stillhouse.registry import Registry, names
from stillhouse.registry.links import Links
from stillhouse.shown import escape_code
from stillhouse.shown import escape_markdown as md
from stillhouse.teachers.mixture_weights import MIN_RECORDED_CHANGE, slice_shares

__all__ = [
    "draw_png",
    "embed_png",
    "format_heading",
    "format_line",
    "format_links",
    "format_number",
    "format_reasons",
    "format_table",
    "format_weights",
    "insert_after_heading",
    "join_first",
]


def format_line(verdict: Verdict) -> str:
    """The verdict in one line, for a list of artifacts."""
    return f"{verdict.result.replace('_', ' ')}, as of {verdict.as_of:%Y-%m-%d %H:%M} UTC"


def format_heading(verdict: Verdict) -> str:
    """The title of a page, with the summary, the time and the id of the verdict."""
    result = verdict.result.replace("_", " ")
    return (
        f"# {verdict.agent}: {result}\n\n{md(verdict.summary)}\n\nas of {verdict.as_of:%Y-%m-%d %H:%M} UTC, "
        f"verdict {escape_code(verdict.verdict_id)}"
    )


def insert_after_heading(page: str, section: str) -> str:
    r"""The page with a section before its first section, or at its end.

    >>> insert_after_heading("# flights: promoted\n\nsummary\n\n## Models\n\ntable", "## Approve\n\nlink")
    '# flights: promoted\n\nsummary\n\n## Approve\n\nlink\n\n## Models\n\ntable'
    """
    heading, mark, rest = page.partition("\n\n## ")
    return f"{heading}\n\n{section}{mark}{rest}"


_STATUS = {"requested": "requested", "failed": "**failed**", "undecided": "**undecided**", "passed": "passed"}


def format_reasons(reasons: tuple[Reason, ...]) -> str:
    """The reasons as a list, one a line, what failed first; in a table Prefect would cut off long sentences.

    >>> print(format_reasons((Reason(measure="psi", failed=True, text="dep_delay has moved"),)))
    - **failed** `psi`: dep_delay has moved
    """
    ranked = sorted(reasons, key=lambda reason: list(_STATUS).index(reason.status))
    lines = (f"{_STATUS[r.status]} {escape_code(r.measure)}: {md(r.text)}" for r in ranked)
    return "\n".join(f"- {line}" for line in lines)


def format_links(registry: Registry, run_id: str, *, docs: bool = True, why: bool = False) -> str:
    """Links to the MLflow run and to its page of data checks: on the tracking server, or on that of ``make ui``.

    :param docs: whether the run has a page of data checks.
    :param why: whether it has a page ``why.md``.
    """
    pages = Links.of(registry.uri, registry.experiment_id)
    run = f"[MLflow run `{run_id}`]({pages.run(run_id)})"
    if why:
        run += f" · [why]({pages.run(run_id, names.WHY)})"
    if docs:
        run += f" · [data checks]({pages.run(run_id, names.DATA_DOCS)})"
    return run if registry.uri.startswith("http") else f"{run} (after `make ui`)"


def format_table(header: str, rows: list[str]) -> str:
    """A Markdown table; a pipe within a header cell is escaped as ``\\|``.

    >>> print(format_table("| column | PSI |", ["| origin | 0.12 |"]))
    | column | PSI |
    |---|---|
    | origin | 0.12 |
    """
    return "\n".join([header, "|" + "---|" * (len(re.findall(r"(?<!\\)\|", header)) - 1), *rows])


def format_number(value: float | None) -> str:
    """The value with four significant digits; an empty string for None."""
    return "" if value is None else f"{value:.4g}"


def embed_png(png: bytes, title: str) -> str:
    """A PNG inside the page, as a data URL."""
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"


def draw_png(figure: Figure) -> bytes:
    """The figure as a PNG in the resolution of a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def join_first(values: Sequence[str], limit: int = 10) -> str:
    """The first ``limit`` values, as one table cell."""
    return md(", ".join(values[:limit]))


def format_weights(mixture: TeacherWeights) -> str:
    """The section on the teachers' weights: the shares overall, and of each slice where they differ."""
    count, overall = mixture.everywhere.time_blocks, slice_shares(mixture)
    rows = [
        f"| {md(name)} | {start:.1%} | {share:.1%} | {mixture.losses[name] / count if count else 0:.4f} |"
        for name, start, share in zip(mixture.teachers, mixture.start, overall, strict=True)
    ]
    parts = ["## Weights of the teachers", _describe_weight_source(mixture)]
    parts.append(format_table("| teacher | at the start | share | log loss |", rows))
    slices = [(name, slice_shares(mixture, name)) for name in mixture.slices]
    differing = [(name, shares) for name, shares in slices if abs(shares - overall).max() >= MIN_RECORDED_CHANGE]
    if differing:
        header = "| slice | outcomes | " + " | ".join(map(md, mixture.teachers)) + " |"
        rows = [
            f"| {md(name)} | {mixture.slices[name].outcomes:,} | " + " | ".join(f"{s:.1%}" for s in shares) + " |"
            for name, shares in differing
        ]
        parts.append(format_table(header, rows))
    return "\n\n".join(parts)


def _describe_weight_source(mixture: TeacherWeights) -> str:
    count = mixture.everywhere.outcomes
    text = {
        "file": "As the agent file says.",
        "outcomes": f"By {count:,} outcomes, in the order they became known.",
        "agreement": f"By how far the teachers agree, which is weaker than outcomes, and by {count:,} outcomes.",
    }
    if not count:
        return text[mixture.by]
    return (
        f"{text[mixture.by]} Log loss of the mean: {mixture.losses[''] / count:.4f} as weighted at each time, "
        f"{mixture.losses['start'] / count:.4f} as weighted at the start."
    )
