"""Explain in MLflow why a version is champion, or is not: a page ``why.md``, and one sentence as description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stillhouse.pages import format_heading, format_reasons, format_table
from stillhouse.records import ModelRef, Verdict
from stillhouse.registry import Registry, names
from stillhouse.registry.links import Links
from stillhouse.shown import escape_code, escape_line
from stillhouse.shown import escape_markdown as md

__all__ = ["describe_change", "explain_change", "format_promotion_page", "format_why"]


def explain_change(registry: Registry, verdict: Verdict, champion: ModelRef, before: ModelRef | None) -> None:
    """Explain a change of the champion that no refresh made: by a person, by the pool, or in MLflow by hand."""
    sentence = f"{verdict.summary} (since {verdict.as_of:%Y-%m-%d %H:%M} UTC)"
    page = format_why(registry, f"Why {champion} is champion", sentence, verdict, champion)
    if champion.run_id is not None:
        registry.runs.log_files(champion.run_id, {names.WHY: page.encode()})
    describe_change(registry, verdict, champion, before, sentence)


def format_promotion_page(registry: Registry, verdict: Verdict) -> str:
    """The page of a promotion as Markdown, with links to the champion and to the reasons in MLflow."""
    parts, champion = [format_heading(verdict), format_reasons(verdict.reasons)], registry.champion()
    if champion is not None:
        pages = Links.of(registry.uri, registry.experiment_id)
        link = f"[{md(champion)} in MLflow]({pages.version(champion.name, str(champion.version))})"
        if champion.run_id is not None:
            link += f" · [why it is champion]({pages.run(champion.run_id, names.WHY)})"
        parts.append(link)
    return "\n\n".join(parts)


def describe_change(
    registry: Registry, verdict: Verdict, champion: ModelRef, before: ModelRef | None, sentence: str
) -> None:
    """Make ``sentence`` the description of the champion, of the registered model and of the experiment.

    :param before: the former champion, whose description says that it is none any more.
    """
    registry.describe_champion(str(champion.version), escape_line(sentence))
    if before is not None and before != champion:
        result = "rolled back" if verdict.result == "rolled_back" else "replaced"
        text = f"{before} was champion until {verdict.as_of:%Y-%m-%d %H:%M} UTC, then {champion} followed."
        registry.describe_version(str(before.version), text, result=result)


def format_why(
    registry: Registry,
    title: str,
    sentence: str,
    verdict: Verdict,
    version: ModelRef | None,
    figures: Sequence[str] = (),
    links: Mapping[str, str] | None = None,
) -> str:
    """The page ``why.md`` as Markdown: what happened, the reasons, the figures, and links to all that it rests on.

    :param version: that the page is about; None: there is none, as the teacher was refused.
    :param figures: sections of Markdown, with their headings.
    :param links: more rows of the table of links: a name, and Markdown.
    """
    pages, rows = Links("", registry.experiment_id), dict(links or {})
    if version is not None:
        rows |= _link_origin(registry, version, pages)
    rows["is it still good?"] = (
        f"[its watches]({pages.runs('tags.role = ' + repr('watch'))}) and the "
        f"[quality of all champions on the same rows]({pages.runs('tags.role = ' + repr('curves'))})"
    )
    rows["go back"] = escape_code(f"python -m flows promote --agent {verdict.agent} --rollback")
    table = format_table("| what | where |", [f"| {md(name)} | {cell} |" for name, cell in rows.items()])
    parts = [f"# {md(title)}", md(sentence), "## Reasons", format_reasons(verdict.reasons), *figures]
    parts += ["## Where to look", table, f"Verdict {escape_code(verdict.verdict_id)}."]
    return "\n\n".join(filter(None, parts)) + "\n"


def _link_origin(registry: Registry, version: ModelRef, pages: Links) -> dict[str, str]:
    """Links to the version, its refresh, its ancestors and its data."""
    tags, number = registry.models.tags(version), str(version.version)
    rows = {"version": f"[{md(version)}]({pages.version(version.name, number)})"}
    if run_id := tags.get("refresh_run"):
        rows["refresh"] = (
            f"[run]({pages.run(run_id)}), [settings and figures against the champion]"
            f"({pages.run(run_id, names.DIFF)}), [certificate]({pages.run(run_id, names.CERTIFICATE)})"
        )
    for role in ("teacher", "student"):
        if address := tags.get(f"lineage.{role}"):
            rows[role] = f"[{role}]({pages.logged_model(address.removeprefix('models:/'))})"
    if knowledge := tags.get("lineage.knowledge"):
        rows["data"] = f"tables of the knowledge base at versions {escape_code(knowledge)}"
    if (drift := tags.get("lineage.drift")) and run_id:
        rows["drift"] = f"[verdict of the watch {md(drift)}]({pages.run(run_id, names.DRIFT_VERDICT)})"
    return rows
