"""Verify a watch: the rows of its window, the data contract, the drift report, the evidence, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from stillhouse import config, data_contract
from stillhouse.certifying.findings import Findings
from stillhouse.certifying.gates import note_changed_rows
from stillhouse.certifying.models import fetch_model
from stillhouse.champion import Champion, open_registry
from stillhouse.config import AgentConfig
from stillhouse.drift import audit, evidence
from stillhouse.drift.decide import Evidence, decide_from_evidence
from stillhouse.evaluate.sources import describe_window, restore_settings
from stillhouse.payoff.champion_choice import choose_champion
from stillhouse.records import DriftReport, EvidenceRows, EvidenceStep, Sources, Verdict
from stillhouse.teachers import ensemble
from stillhouse.variant import Variant
from stillhouse.watching.deciding import WATCH_SECTIONS, read_audited_rows, report_drift
from stillhouse.watching.window import WatchedWindow

__all__ = ["verify_watch"]

_SECONDS = frozenset({"seconds", "docs"})


def verify_watch(verdict: Verdict, findings: Findings) -> None:
    """Compute the evidence of a watch again, and its verdict."""
    record = Evidence.model_validate(verdict.evidence)
    findings.compare_verdicts(
        "the verdict that follows from the evidence", verdict, decide_from_evidence(verdict.evidence)
    )
    if record.sources is None:
        findings.missing.append(
            "the verdict names no rows and no model files, because an older version of stillhouse made it: only its "
            "rule was applied again"
        )
        return
    findings.not_recomputed += _list_not_recomputed(record)
    settings = restore_settings(config.load(verdict.agent), record.sources.settings, WATCH_SECTIONS)
    with TemporaryDirectory() as folder:
        champion = _load_champion(record, record.sources, Path(folder), findings)
        watched = WatchedWindow(verdict.agent, record.data.window, champion, settings=settings)
        advice = "Retention or a lost file removed them (`upkeep` in the agent file); restore the tables from a backup"
        with findings.noting_missing("the rows of the window 'current'", advice):
            _compare_rows(watched, record, findings)
            _compare_contract(watched, record, findings)
            drift = _compare_drift(watched, record, findings)
            _judge_again(verdict, record, drift, findings)
    _compare_history(watched, record, findings)
    _compare_choice(settings, record, findings)


# --------------------------------------------------------------------------- inside


def _list_not_recomputed(record: Evidence) -> Iterator[str]:
    yield "durations, and the calls of the watch"
    if record.steps:
        yield "the losses of audited rows: the steps are computed from them as recorded"
    if any(step.process != "disagreement" for step in record.steps):
        yield "the losses on outcomes: their rows are not stored with the evidence, only its steps"
    if record.reckoning is not None:
        yield "the predicted gains: they are judged as recorded"
    if record.pool is not None:
        yield "the scores of the pool's members: its evidence is judged as recorded"


def _load_champion(record: Evidence, sources: Sources, folder: Path, findings: Findings) -> Champion | None:
    """The watched champion, with the files that MLflow has now; None if drift was not measured or it is missing."""
    source = sources.model("champion")
    if record.drift is None or source is None:
        return None
    registry, number = open_registry(record.agent), source.name.rpartition("@")[2]
    files = fetch_model(registry, source, number, folder, findings)
    ref = registry.version(record.agent, number)
    if files is None or ref is None:
        findings.missing.append(f"drift was not measured again, because {source.name} is missing")
        return None
    champion = Champion(ref, config.load(record.agent), registry)
    champion.__dict__["variant"] = Variant(files)  # the cached property
    return champion


def _compare_rows(watched: WatchedWindow, record: Evidence, findings: Findings) -> None:
    (source,) = record.sources.windows if record.sources else ()
    measured = record.drift is not None and watched.champion is not None
    rows = watched.with_labels if measured else watched.observations.assign(outcome=-1)
    if record.drift is not None and not measured:
        source = source.model_copy(update={"labels": ""})
    now = describe_window(source.window, rows)
    findings.compare_window(source, now if source.labels else now.model_copy(update={"labels": ""}))
    note_changed_rows("current", rows, watched.settings, findings)


def _compare_contract(watched: WatchedWindow, record: Evidence, findings: Findings) -> None:
    """The data contract of that time, on the rows as stored."""
    if record.data.skipped_because is not None:
        findings.not_recomputed.append(f"the data contract: it was not checked ({record.data.skipped_because})")
        return
    report, _ = data_contract.check(watched.raw, record.data.window, watched.settings)
    fields = {"rows", "quarantined", "failures"}
    recorded, now = (one.model_dump(mode="json", include=fields) for one in (record.data, report))
    findings.compare("the data contract", recorded, now)


def _compare_drift(watched: WatchedWindow, record: Evidence, findings: Findings) -> DriftReport | None:
    """The drift report from the rows, the champion and the stored answers of its teacher."""
    champion, recorded = watched.champion, record.drift
    if champion is None or recorded is None:
        return recorded
    audited = read_audited_rows(watched, champion, record.steps, until=record.as_of)
    teacher = ensemble.read_reference(champion.teacher_folder()).version
    teacher_probs = watched.champion_base.answers.probs(audited, teacher)
    report = report_drift(watched, champion, record.data, audited, teacher_probs)
    ignored = set(_SECONDS)
    rows_before, rows_now = (one.disagreement.rows if one.disagreement else 0 for one in (recorded, report))
    if rows_now > rows_before:
        ignored |= {"disagreement", "slices"}
        findings.not_recomputed.append("the disagreement with the teacher: it has answered more rows since")
        report = report.model_copy(update={"disagreement": recorded.disagreement, "slices": recorded.slices})
    findings.compare(
        "the drift report", recorded.model_dump(mode="json"), report.model_dump(mode="json"), frozenset(ignored)
    )
    _compare_evidence(watched, record.steps, findings)
    return report


def _compare_evidence(watched: WatchedWindow, recorded: Sequence[EvidenceStep], findings: Findings) -> None:
    """The steps in the journal must end in the recorded ones, and each audited step follow from the one before."""
    for last in recorded:
        if last.end == last.since:
            continue  # nothing was counted yet
        what = f"the evidence of {last.process.replace('_', ' ')}"
        steps = [
            rows
            for rows in watched.champion_base.journal.evidence(last.champion, last.since)
            if rows.step.process == last.process and rows.step.end <= last.end
        ]
        if not steps:
            findings.missing.append(f"{what}: the table `evidence` has no steps of it; restore it from a backup")
            continue
        findings.compare(what, last.model_dump(mode="json"), steps[-1].step.model_dump(mode="json"))
        if last.process == "disagreement":
            for before, now in pairwise(steps):
                _compare_step(what, before.step, now, findings)


def _compare_step(what: str, before: EvidenceStep, now: EvidenceRows, findings: Findings) -> None:
    """One step from the recorded losses of its rows: a variant in dynamic int8 answers slightly by the batch."""
    ids, weights = np.array(now.cluster_ids, dtype=np.int64), np.array(now.sampling_weights)
    draws = audit.Draws(np.arange(len(ids)), ids, np.array(now.probabilities), weights)
    means = audit.cluster_means(draws, np.array(now.losses)) if len(ids) else np.empty(0)
    step = evidence.advance(before, means, start=now.step.start, end=now.step.end, rows=len(set(now.observation_ids)))
    findings.compare(
        f"{what} until {now.step.end:%Y-%m-%d %H:%M}", now.step.model_dump(mode="json"), step.model_dump(mode="json")
    )


def _judge_again(verdict: Verdict, record: Evidence, drift: DriftReport | None, findings: Findings) -> None:
    again = record.model_copy(update={"drift": drift})
    judged = decide_from_evidence(again.model_dump(mode="json"))
    findings.compare_verdicts("the verdict that follows from the new figures", verdict, judged)


def _compare_history(watched: WatchedWindow, record: Evidence, findings: Findings) -> None:
    """The last refresh that the verdict names must have a gate's verdict with that result."""
    if record.last_refresh is None:
        return
    what = f"the last refresh, {record.last_refresh:%Y-%m-%d %H:%M}"
    gate = watched.base.journal.verdict_at("gate", record.last_refresh)
    if gate is None:
        findings.missing.append(f"{what}: the journal has no verdict of a gate at that time; restore it from a backup")
        return
    findings.compare(f"{what}: whether it was refused", record.refused, gate.result == "refused")


def _compare_choice(settings: AgentConfig, record: Evidence, findings: Findings) -> None:
    """Which member of the pool should be champion, from the recorded state of the pool.

    In front of the pool's reasons the watch puts what it has compared on rows: a reuse that is proven or not, or a
    slice on which the new champion would be worse. These decide over the pool.
    """
    recorded, what = record.choice, "the choice of the champion in the pool"
    if record.pool is None or recorded is None:
        return
    choice = choose_champion(record.pool, allow_promotion=not settings.labels_depend_on_decision)
    compared = recorded.reasons[: len(recorded.reasons) - len(choice.reasons)]
    if not compared:
        findings.compare(what, recorded.model_dump(mode="json"), choice.model_dump(mode="json"))
        return
    without = recorded.model_copy(update={"reasons": recorded.reasons[len(compared) :]})
    findings.compare(
        f"{what}: reasons",
        without.model_dump(mode="json", include={"reasons"}),
        choice.model_dump(mode="json", include={"reasons"}),
    )
    action = "keep" if any(reason.failed for reason in compared) else "promote"
    findings.compare(f"{what}: what the comparisons on rows decide", recorded.action, action)
