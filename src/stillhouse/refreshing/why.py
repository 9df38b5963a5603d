"""The pages ``why.md`` and ``diff.md`` of a refresh, and the one sentence about its version."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from stillhouse.evaluate.comparing import lower_bound
from stillhouse.evaluate.gate import bound_confidence
from stillhouse.explaining import describe_change, escape_description, format_figures, format_why
from stillhouse.pages import format_table
from stillhouse.quality import measure_title
from stillhouse.records import Certificate, Comparison, ModelRef, Proof, SameRows, Scorecard, Verdict, words_for
from stillhouse.refreshing.session import Session
from stillhouse.registry import names
from stillhouse.registry.links import Links
from stillhouse.registry.runs import Content
from stillhouse.shown import escape_code
from stillhouse.shown import escape_markdown as md

__all__ = ["format_diff", "publish_why", "summarize_refresh"]


def publish_why(session: Session, verdict: Verdict, version: ModelRef | None) -> None:
    """Write ``why.md`` and ``diff.md`` to the refresh run and to the version's run, and describe the version.

    Everything is read from the run, so that a resumed refresh writes the same pages.

    :param version: the version that the verdict is about; None: the teacher was refused, and there is none.
    """
    job, registry = session.job, session.registry
    proof = registry.runs.read_record(job.run_id, names.PROOF, Proof)
    same_rows = registry.runs.read_record(job.run_id, names.SAME_ROWS, SameRows)
    sentence = summarize_refresh(verdict, version, proof, same_rows)
    figures = format_figures(proof, same_rows)
    title = f"Why {version or 'this refresh'} {_TITLES.get(verdict.result, verdict.result.replace('_', ' '))}"
    page = format_why(registry, title, sentence, verdict, version, figures, _list_links(session, proof))
    files: dict[str, Content] = {names.WHY: page.encode()}
    if proof is not None and proof.champion is not None:
        files[names.DIFF] = format_diff(session, proof, str(version or proof.chosen)).encode()
    registry.runs.log_files(job.run_id, files)
    if version is None:
        return
    if version.run_id is not None:
        registry.runs.log_files(version.run_id, files)
    if verdict.result == "promoted":
        before = proof.champion.model if proof is not None and proof.champion is not None else None
        replaced = registry.version(job.agent, before.rpartition("@")[2]) if before else None
        describe_change(registry, verdict, version, replaced, sentence)
    else:
        registry.describe_version(
            str(version.version), escape_description(sentence), result=verdict.result.replace("_", " ")
        )


_TITLES = {
    "promoted": "is champion",
    "refused": "was refused",
    "inconclusive": "is not champion yet",
    "awaiting_approval": "waits for approval",
}


def summarize_refresh(
    verdict: Verdict, version: ModelRef | None, proof: Proof | None, same_rows: SameRows | None
) -> str:
    """One sentence: what became of the version, when, and by which figures on the same rows."""
    moment = f"{verdict.as_of:%Y-%m-%d %H:%M} UTC"
    if verdict.result != "promoted" or version is None or proof is None or same_rows is None:
        return f"{version or verdict.agent}, {moment}: {verdict.summary}"
    what = f"{version} is champion since {moment}"
    final_fit = (
        ""
        if version.version and same_rows.quality_of(str(version)) is not None
        else (f"as the final fit of {same_rows.models[0].model}, which had ")
    )
    figure = f"{measure_title(same_rows.measure)} {proof.certificate.challenger.test.score:.4f}"
    where = f"on the {same_rows.rows:,} rows of {same_rows.window.dates}"
    test = next((one for one in proof.certificate.comparisons if _is_decisive(one)), None)
    if proof.champion is None or test is None:
        return f"{what}: {final_fit}{figure} {where}."
    bound = lower_bound(test, bound_confidence(proof.certificate))
    return (
        f"{what}: {final_fit}{figure} against {test.champion:.4f} of {proof.champion.model} {where}, a gain of "
        f"{test.difference:+.4f}, at least {bound:+.4f}, where a loss of {test.margin:.4g} is allowed."
    )


def format_diff(session: Session, proof: Proof, challenger: str) -> str:
    """Settings and figures of the challenger against the champion, as Markdown; equal settings are left out.

    :param challenger: what it is called on the page.
    """
    assert proof.champion is not None  # as checked by the caller
    registry, name = session.registry, proof.champion.model
    champion = registry.version(session.agent, name.rpartition("@")[2])  # the session's may be the new one by now
    parts = [f"# {md(challenger)} against {md(name)}", "## Figures on the same rows"]
    header = f"| figure | {md(name)} | {md(challenger)} | difference |"
    parts.append(format_table(header, list(_list_figures(proof.champion, proof.certificate))))
    run_id = registry.models.tags(champion).get("refresh_run") if champion is not None else None
    before = registry.runs.params(run_id) if run_id is not None else {}
    now = registry.runs.params(session.job.run_id)
    rows = [
        f"| {escape_code(key)} | {escape_code(before.get(key, ''))} | {escape_code(now.get(key, ''))} |"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    parts.append("## Settings that differ")
    parts.append(format_table(f"| setting | {md(name)} | {md(challenger)} |", rows) if rows else "None.")
    if champion is not None:
        baseline, job = registry.baseline(champion), session.job
        data = [
            f"| training window | {md(baseline.train.dates)} | {md(job.train.dates)} |",
            f"| test window | {md(baseline.test.dates)} | {md(job.test.dates)} |",
            f"| mode | {md(registry.refresh_mode(champion))} | {md(job.mode)} |",
        ]
        parts += ["## Data", format_table(f"| data | {md(name)} | {md(challenger)} |", data)]
    return "\n\n".join(parts) + "\n"


# --------------------------------------------------------------------------- inside


def _is_decisive(comparison: Comparison) -> bool:
    return comparison.window == "test" and comparison.role == "non_inferior"


def _list_figures(champion: Scorecard, certificate: Certificate) -> Iterator[str]:
    """Rows of the table of figures; both were measured on the test window of this refresh."""
    challenger, accuracy = certificate.challenger, words_for(certificate.labels).accuracy
    old, new = champion.test, challenger.test
    figures: list[tuple[str, float | None, float | None]] = []
    if new.measure not in ("accuracy", "agreement", "log_loss"):
        figures.append((measure_title(new.measure), old.score, new.score))
    figures += [
        (accuracy, old.accuracy, new.accuracy),
        ("log loss (nats)", old.log_loss, new.log_loss),
        ("calibration error", old.calibration_error, new.calibration_error),
        ("agreement with the new teacher", champion.agreement, challenger.agreement),
        ("bytes", champion.bytes, challenger.bytes),
        *(
            (f"latency {name} (ms)", getattr(champion.latency, field, None), getattr(challenger.latency, field, None))
            for name, field in (("p50", "p50_ms"), ("p95", "p95_ms"))
        ),
    ]
    for name, before, now in figures:
        if before is not None and now is not None:
            form = "," if name == "bytes" else ".4f"
            yield f"| {md(name)} | {before:{form}} | {now:{form}} | {now - before:+{form}} |"


def _list_links(session: Session, proof: Proof | None) -> dict[str, str]:
    """What started the refresh, and the champion that was compared with."""
    job, registry = session.job, session.registry
    pages, tags = Links("", registry.experiment_id), registry.runs.tags(job.run_id)
    rows = {"asked for by": f"{md(job.trigger)}: {md(job.cause)}", "refresh": f"[run]({pages.run(job.run_id)})"}
    if page := tags.get("prefect_run"):
        is_address = page.startswith(("http://", "https://"))
        rows["Prefect run"] = f"[flow run]({quote(page, safe=':/?#=&%')})" if is_address else escape_code(page)
        rows["data checks"] = f"[report]({pages.run(job.run_id, names.DATA_DOCS)})"  # written by the flow only
    if proof is not None and proof.champion is not None:
        name, _, number = proof.champion.model.rpartition("@")
        rows["champion before"] = f"[{md(proof.champion.model)}]({pages.version(name, number)})"
    rows["training data"], rows["test data"] = md(job.train), md(job.test)
    return rows
