"""Verify a gate: rows, models, figures, comparisons, certificate and verdict; and the admission of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from stillhouse import config
from stillhouse.certifying.findings import Findings
from stillhouse.certifying.models import fetch_model
from stillhouse.champion import open_registry
from stillhouse.config import AgentConfig
from stillhouse.errors import RegistryError
from stillhouse.evaluate import admission, gate
from stillhouse.evaluate import proof as proofs
from stillhouse.evaluate.proof import Contender, Yardsticks
from stillhouse.evaluate.sources import describe_answers, describe_window, restore_settings
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.content import content_keys
from stillhouse.records import Certificate, Examination, ModelSource, Refresh, Scorecard, Sources, Verdict
from stillhouse.refreshing.data import RefreshData
from stillhouse.refreshing.proving import PROOF_SECTIONS, make_predict, read_windows
from stillhouse.refreshing.session import join_windows
from stillhouse.registry import Registry, names
from stillhouse.variant import Variant

__all__ = ["note_changed_rows", "verify_admission", "verify_gate"]

_MAX_NAMED_ROWS = 10
_TIMINGS = frozenset({"latency", "cpu", "sources"})


def verify_gate(verdict: Verdict, findings: Findings) -> None:
    """Compute the certificate again from rows and models, and the verdict from the certificate."""
    certificate = Certificate.model_validate(verdict.evidence["certificate"])
    findings.compare_verdicts("the verdict that follows from the certificate", verdict, gate.judge(certificate))
    sources = certificate.sources
    if sources is None:
        findings.missing.append(
            "the certificate names no table versions and no model files, because an older version of stillhouse made "
            "it: only its rule was applied again. A new refresh makes a certificate that can be verified"
        )
        return
    findings.not_recomputed.append("latencies: they belong to the machine and the moment that measured them")
    settings = restore_settings(config.load(certificate.agent), sources.settings, PROOF_SECTIONS)
    registry = open_registry(certificate.agent)
    _compare_with_mlflow(registry, certificate, findings)
    rows = _read_rows(settings, certificate, sources, findings)
    with TemporaryDirectory() as folder:
        models = _load_models(registry, certificate, sources, Path(folder), findings)
        if rows is None or models is None:
            findings.missing.append("the figures were not computed again, because rows or models are missing")
            return
        computed = _certify_again(settings, certificate, sources, rows, models, findings)
    if computed is None:
        return
    findings.compare(
        "the figures and comparisons of the certificate",
        certificate.model_dump(mode="json"),
        computed.model_dump(mode="json"),
        _TIMINGS | ({"agreement"} if _has_later_answers(findings) else set()),
    )
    findings.compare_verdicts("the verdict that follows from the new figures", verdict, gate.judge(computed))


def verify_admission(verdict: Verdict, findings: Findings) -> None:
    """Judge a teacher again from its examination."""
    examination = Examination.model_validate(verdict.evidence["examination"])
    judged = admission.judge(examination)
    findings.compare_verdicts("the verdict that follows from the examination", verdict, judged)
    findings.not_recomputed.append("the figures of the examination: a refused teacher is not kept")


def note_changed_rows(window: str, rows: pd.DataFrame, settings: AgentConfig, findings: Findings) -> None:
    """Note the observations whose features do not match their content key, so that they were changed afterwards.

    >>> from stillhouse.config import load
    >>> note_changed_rows("test", pd.DataFrame(), load("flights"), Findings())

    :param window: its name.
    """
    if rows.empty or not set(settings.observations.columns) <= set(rows.columns):
        return
    is_changed = np.asarray(content_keys(rows, settings)) != rows["content_key"].to_numpy()
    findings.differences += [
        f"observation {observation_id} of the window {window!r} was changed: its features do not match its content key"
        for observation_id in rows.loc[is_changed, "observation_id"].head(_MAX_NAMED_ROWS)
    ]


# --------------------------------------------------------------------------- inside


@dataclass(frozen=True)
class _Models:
    """The folders of all models that the certificate compares."""

    challenger: Path
    champion: Path | None
    yardsticks: tuple[tuple[ModelSource, Path], ...]


def _compare_with_mlflow(registry: Registry, certificate: Certificate, findings: Findings) -> None:
    """The copy of the certificate in the refresh's run must say the same."""
    what = "certificate.json in MLflow"
    with findings.noting_missing(what, "Restore MLflow's database and files from a backup"):
        number = registry.version_of(certificate.refresh_id, certificate.challenger.model)
        version = registry.version(certificate.agent, number)
        run_id = registry.models.tags(version)["refresh_run"] if version else ""
        stored = registry.runs.read_record(run_id, names.CERTIFICATE, Certificate)
        if stored is None:
            raise RegistryError(f"run {run_id} has none that can be read")
        findings.compare(what, certificate.model_dump(mode="json"), stored.model_dump(mode="json"))


def _read_rows(
    settings: AgentConfig, certificate: Certificate, sources: Sources, findings: Findings
) -> dict[str, pd.DataFrame] | None:
    """The labelled rows of each window at its table versions; None if they cannot be read."""
    train, test = sources.window("validation"), sources.window("test")
    if train is None or test is None:
        findings.missing.append("the certificate does not name its validation and test windows: it is damaged")
        return None
    window = join_windows(train.window, test.window)
    data = RefreshData(KnowledgeBase(settings), window, certificate.as_of, test.window.start)
    advice = "Retention or a lost file removed them (`upkeep` in the agent file); restore the tables from a backup"
    rows: dict[str, pd.DataFrame] = {}
    with findings.noting_missing("the rows of the windows", advice):
        others = [source.window for source in sources.windows if source.window.name != "validation"]
        rows = read_windows(data, train.window, others)
    for source in sources.windows if rows else ():
        name = source.window.name
        read = rows.get(name, rows["test"].iloc[:0])
        findings.compare_window(source, describe_window(source.window, read))
        note_changed_rows(name, read, settings, findings)
    return rows if rows and all(len(rows[name]) for name in ("validation", "test")) else None


def _load_models(
    registry: Registry, certificate: Certificate, sources: Sources, folder: Path, findings: Findings
) -> _Models | None:
    folders: list[tuple[ModelSource, Path | None]] = []
    for source in sources.models:
        number = source.name.rpartition("@")[2]
        if source.role == "challenger":
            with findings.noting_missing(f"model {source.name} (challenger)", "Restore MLflow from a backup"):
                number = registry.version_of(certificate.refresh_id, source.name)
        folders.append((source, fetch_model(registry, source, number, folder, findings)))
    loaded = [(source, files) for source, files in folders if files is not None]
    by_role = {source.role: files for source, files in loaded}
    if len(loaded) < len(folders) or "challenger" not in by_role:
        return None
    yardsticks = [(source, files) for source, files in loaded if source.role not in ("challenger", "champion")]
    return _Models(by_role["challenger"], by_role.get("champion"), tuple(yardsticks))


def _certify_again(
    settings: AgentConfig,
    certificate: Certificate,
    sources: Sources,
    rows: Mapping[str, pd.DataFrame],
    models: _Models,
    findings: Findings,
) -> Certificate | None:
    """The certificate of the same models on the rows as they are now, with the recorded timings."""
    base, challenger_name = KnowledgeBase(settings), certificate.challenger.model
    (answers,) = sources.answers
    now = describe_answers(answers.teacher, "test", rows["test"], base.answers.probs(rows["test"], answers.teacher))
    findings.checked.append(f"the teacher's stored answers to {answers.rows:,} rows of the window 'test'")
    if now.rows > answers.rows:
        findings.not_recomputed.append(_LATER_ANSWERS)
    elif now != answers:
        findings.differences.append(
            "the teacher's stored answers to the window 'test' are not those of the certificate"
        )
    if not now.rows:
        findings.missing.append("the teacher's answers are gone from the table `knowledge`: restore it from a backup")
        return None

    def contender(name: str, folder: Path) -> Contender:
        variant = Variant(folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        predict = make_predict(variant, settings.actions)
        return Contender(name, "variant", predict, size, folder=folder, policy=predict)

    challenger, champion = contender(challenger_name, models.challenger), certificate.champion
    yardsticks = [(source.role, contender(source.name, folder)) for source, folder in models.yardsticks]
    by_role = dict(yardsticks)
    proof = proofs.prove(
        settings,
        _make_refresh(certificate, sources),
        rows,
        teacher=Contender("teacher", "teacher", lambda asked: base.answers.probs(asked, answers.teacher), 0),
        student=replace(challenger, name="student", role="student"),
        variants=[challenger],
        chosen=challenger_name,
        why=certificate.nothing_fits,
        fits=not certificate.nothing_fits,
        champion=None
        if champion is None or models.champion is None
        else replace(contender(champion.model, models.champion), role="champion"),
        yardsticks=Yardsticks(
            by_role.get("anchor"),
            by_role.get("never_refreshed"),
            tuple(earlier for role, earlier in yardsticks if role == "earlier"),
        ),
    )
    computed = proof.certificate
    return computed.model_copy(
        update={
            "challenger": _with_timings(computed.challenger, certificate.challenger),
            "champion": computed.champion and champion and _with_timings(computed.champion, champion),
            "contract_skipped": certificate.contract_skipped,
            "rule": computed.rule,
        }
    )


_LATER_ANSWERS = "the agreement with the teacher: it has answered more rows of the window 'test' since"


def _has_later_answers(findings: Findings) -> bool:
    return _LATER_ANSWERS in findings.not_recomputed


def _with_timings(computed: Scorecard, recorded: Scorecard) -> Scorecard:
    return computed.model_copy(update={"latency": recorded.latency, "cpu": recorded.cpu})


def _make_refresh(certificate: Certificate, sources: Sources) -> Refresh:
    """The refresh that made the certificate, as far as a proof needs it."""
    train, test = sources.window("validation"), sources.window("test")
    assert train is not None and test is not None  # as read before
    return Refresh(
        refresh_id=certificate.refresh_id,
        agent=certificate.agent,
        as_of=certificate.as_of,
        trigger="manual",
        cause="",
        train=train.window,
        test=test.window,
        teacher="keep",
        folder="",
        run_id="",
    )
