"""Explain in MLflow why a version is champion, or is not: a page ``why.md``, and one sentence as description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stillhouse.evaluate.comparing import lower_bound
from stillhouse.evaluate.gate import bound_confidence
from stillhouse.pages import format_heading, format_reasons, format_table
from stillhouse.quality import measure_title
from stillhouse.records import Certificate, ModelRef, Proof, SameRows, Verdict, drift_report, words_for
from stillhouse.registry import Registry, names
from stillhouse.registry.links import Links
from stillhouse.shown import escape_code
from stillhouse.shown import escape_markdown as md

__all__ = [
    "describe_change",
    "escape_description",
    "explain_change",
    "format_champion_page",
    "format_figures",
    "format_promotion_page",
    "format_why",
]


def explain_change(registry: Registry, verdict: Verdict, champion: ModelRef, before: ModelRef | None) -> None:
    """Explain a change of the champion that no refresh made: by a person, by the pool, or in MLflow by hand.

    The page keeps the figures that the gate had when it judged the refresh of this version.
    """
    proof, same_rows = _read_proof(registry, champion)
    sentence = f"{verdict.summary} (since {verdict.as_of:%Y-%m-%d %H:%M} UTC){_compare(champion, before, same_rows)}"
    figures = format_figures(proof, same_rows)
    page = format_why(registry, f"Why {champion} is champion", sentence, verdict, champion, figures)
    if champion.run_id is not None:
        registry.runs.log_files(champion.run_id, {names.WHY: page.encode()})
    describe_change(registry, verdict, champion, before, sentence)


def format_promotion_page(registry: Registry, verdict: Verdict) -> str:
    """The page of a promotion as Markdown, with links to the champion and to the reasons in MLflow."""
    parts, champion = [format_heading(verdict), "## Reasons", format_reasons(verdict.reasons)], registry.champion()
    if champion is not None:
        pages = Links.of(registry.uri, registry.experiment_id)
        link = f"[{md(champion)} in MLflow]({pages.version(champion.name, str(champion.version))})"
        if champion.run_id is not None:
            link += f" · [why it is champion]({pages.run(champion.run_id, names.WHY)})"
        parts.append(link)
    return "\n\n".join(parts)


def format_champion_page(registry: Registry, links: Mapping[str, str] | None = None) -> str | None:
    """One page: who is champion, since when, and where to find why, what changed, how good it is and how to go back.

    :param links: more rows of the table: a question or a name, and Markdown.
    :returns: Markdown; None if there is no champion.
    """
    champion = registry.champion()
    if champion is None:
        return None
    answers = _link_answers(registry, champion, Links.of(registry.uri, registry.experiment_id))
    rows = [f"| {md(name)} | {cell} |" for name, cell in (answers | dict(links or {})).items()]
    sentence = registry.read_description(champion).partition("\n\n")[0]  # as by `describe_change`
    return "\n\n".join([f"# {md(champion)} is champion", sentence, format_table("| question | where |", rows)])


def escape_description(sentence: str) -> str:
    """The sentence as plain text in Markdown that is legible as it is too: MLflow's lists show descriptions so.

    >>> escape_description("flights@7 is *the* champion")
    'flights@7 is \\\\*the\\\\* champion'
    """
    return md(sentence).replace("&#64;", "@")


def describe_change(
    registry: Registry, verdict: Verdict, champion: ModelRef, before: ModelRef | None, sentence: str
) -> None:
    """Make ``sentence``, with links to more, the description of the champion, the registered model and the experiment.

    :param before: the former champion, whose description says that it is none any more.
    """
    answers = _link_answers(registry, champion, Links("", registry.experiment_id))
    links = " · ".join(f"{md(question)} {cell}" for question, cell in answers.items())
    registry.describe_champion(str(champion.version), f"{escape_description(sentence)}\n\n{links}")
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
    rows["go back"] = _format_rollback(verdict.agent)
    table = format_table("| what | where |", [f"| {md(name)} | {cell} |" for name, cell in rows.items()])
    parts = [f"# {md(title)}", md(sentence), "## Reasons", format_reasons(verdict.reasons), *figures]
    parts += ["## Where to look", table, f"Verdict {escape_code(verdict.verdict_id)}."]
    return "\n\n".join(filter(None, parts)) + "\n"


def format_figures(proof: Proof | None, same_rows: SameRows | None) -> list[str]:
    """Sections with the figures of a refresh: its models on the same rows, and what the gate compared."""
    if proof is None or same_rows is None:
        return []
    return [*_format_same_rows(same_rows), *_format_comparisons(proof.certificate)]


# --------------------------------------------------------------------------- inside


def _format_same_rows(same_rows: SameRows) -> list[str]:
    rows = [f"| {one.role.replace('_', ' ')} | {md(one.model)} | {one.quality:.4f} |" for one in same_rows.models]
    heading = f"| role | model | {md(measure_title(same_rows.measure))} |"
    where = f"All on the same {same_rows.rows:,} rows, {same_rows.window.dates}; {same_rows.better} is better."
    return ["## Figures on the same rows", where, format_table(heading, rows)]


def _format_comparisons(certificate: Certificate) -> list[str]:
    """Every comparison of the gate, by window and slice; empty for a first champion."""
    confidence, say = bound_confidence(certificate), words_for(certificate.labels).say
    rows = [
        f"| {md(one.window)} | {md(say(measure_title(one.measure)))} | {one.rows:,} | {one.challenger:.4f} "
        f"| {one.champion:.4f} | {one.difference:+.4f} | {lower_bound(one, confidence):+.4f} | {one.margin:.4g} |"
        for one in certificate.comparisons
    ]
    header = "| rows | measure | number | challenger | champion | difference | at least | allowed loss |"
    return ["## What the gate compared", format_table(header, rows)] if rows else []


def _compare(champion: ModelRef, before: ModelRef | None, same_rows: SameRows | None) -> str:
    """A sentence with the figures of both on the same rows; empty if one of them was not scored there."""
    if before is None or same_rows is None:
        return ""
    now, then = same_rows.quality_of(str(champion)), same_rows.quality_of(str(before))
    if now is None or then is None:
        return ""
    where = f"On the {same_rows.rows:,} rows of {same_rows.window.dates}"
    return f". {where} it had {measure_title(same_rows.measure)} {now:.4f}, and {before} {then:.4f}."


def _read_proof(registry: Registry, version: ModelRef) -> tuple[Proof | None, SameRows | None]:
    """What the refresh of a version has measured."""
    run_id = registry.models.tags(version).get("refresh_run")
    if run_id is None:
        return None, None
    proof = registry.runs.read_record(run_id, names.PROOF, Proof)
    return proof, registry.runs.read_record(run_id, names.SAME_ROWS, SameRows)


def _link_answers(registry: Registry, champion: ModelRef, pages: Links) -> dict[str, str]:
    """By question about the champion, Markdown that links to the answer."""
    answers = dict[str, str]()
    if champion.run_id is not None:
        answers["Why?"] = f"[reasons, figures, teacher, data, drift]({pages.run(champion.run_id, names.WHY)})"
    run_id, (proof, _) = registry.models.tags(champion).get("refresh_run"), _read_proof(registry, champion)
    if run_id is not None and proof is not None and proof.champion is not None:
        answers["What changed?"] = f"[figures and settings]({pages.run(run_id, names.DIFF)})"
    watches, curves = pages.runs("tags.role = 'watch'"), pages.runs("tags.role = 'curves'")
    answers["Is it still good?"] = f"[its watches]({watches}), [quality over time]({curves})"
    answers["How to go back?"] = _format_rollback(registry.agent)
    return answers


def _format_rollback(agent: str) -> str:
    return escape_code(f"python -m flows promote --agent {agent} --rollback")


def _link_origin(registry: Registry, version: ModelRef, pages: Links) -> dict[str, str]:
    """Links to the version, its refresh, its ancestors and its data."""
    tags, number = registry.models.tags(version), str(version.version)
    rows = {"version": f"[{md(version)}]({pages.version(version.name, number)})"}
    if run_id := tags.get("refresh_run"):
        proof, _ = _read_proof(registry, version)
        cells = [f"[run]({pages.run(run_id)})"]
        if proof is not None and proof.champion is not None:
            cells.append(f"[settings and figures against the champion]({pages.run(run_id, names.DIFF)})")
        cells.append(f"[certificate]({pages.run(run_id, names.CERTIFICATE)})")
        rows["refresh"] = ", ".join(cells)
    for role in ("teacher", "student"):
        if address := tags.get(f"lineage.{role}"):
            rows[role] = f"[{role}]({pages.logged_model(address.removeprefix('models:/'))})"
    if knowledge := tags.get("lineage.knowledge"):
        data_sets = f"[data sets of the refresh]({pages.run(run_id)}), " if run_id else ""
        rows["data"] = f"{data_sets}tables of the knowledge base at versions {escape_code(knowledge)}"
    if (drift := tags.get("lineage.drift")) and run_id:
        figure = f"[by column]({pages.run(run_id, names.DRIFT_FIGURE)}), " if _has_drift(registry, run_id) else ""
        rows["drift"] = f"{figure}[verdict of the watch {md(drift)}]({pages.run(run_id, names.DRIFT_VERDICT)})"
    return rows


def _has_drift(registry: Registry, run_id: str) -> bool:
    """Whether the watch that caused the refresh has measured drift, which is drawn then."""
    verdict = registry.runs.read_record(run_id, names.DRIFT_VERDICT, Verdict)
    return verdict is not None and drift_report(verdict) is not None
