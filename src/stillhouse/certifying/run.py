"""Verify one verdict: find it, compute it again by its kind, and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stillhouse import config
from stillhouse.certifying.findings import Findings
from stillhouse.certifying.gates import verify_admission, verify_gate
from stillhouse.certifying.promotions import verify_promotion
from stillhouse.certifying.watches import verify_watch
from stillhouse.drift.decide import decide_from_evidence
from stillhouse.errors import ConfigError
from stillhouse.evaluate import admission, gate
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.journal import Journal
from stillhouse.records import Certificate, Examination, Verdict, Verification

__all__ = ["verify"]


def verify(agent: str, verdict: str = "last") -> Verification:
    """Compute a verdict again from the stored data and models. Nothing is written, and no teacher is asked.

    - A gate: the rows of all windows at their table versions, the files of all models, the figures, the comparisons,
      the certificate, and the verdict by the rule that the certificate names.
    - A watch: the rows of its window, the data contract, the drift report, the evidence steps, and the verdict.
    - The admission of a teacher: the verdict from the examination.
    - A promotion: its place in the history of champions, and the signed release.

    Figures are the same if they differ by at most 1e-6 of their value. Timings are not compared.

    >>> import stillhouse
    >>> from stillhouse.certifying.run import verify
    >>> verify("flights", "last").identical  # doctest: +SKIP
    True

    :param agent: name of an agent file.
    :param verdict: an id, ``last``, or the path of a certificate, examination or verdict as JSON, which is compared
        with the journal as well.
    :raises ConfigError: if there is no such verdict, or the file holds none of this agent.
    """
    journal = KnowledgeBase(config.load(agent)).journal
    findings = Findings()
    recorded = _find_verdict(agent, verdict, journal, findings)
    _VERIFIERS[_kind(recorded)](recorded, findings)
    _note_forgotten(recorded, journal, findings)
    return Verification(
        agent=agent,
        verdict_id=recorded.verdict_id,
        as_of=recorded.as_of,
        result=recorded.result,
        identical=not findings.differences and not findings.missing,
        checked=tuple(findings.checked),
        not_recomputed=tuple(findings.not_recomputed),
        missing=tuple(findings.missing),
        differences=tuple(dict.fromkeys(findings.differences)),
    )


def _verify_forgotten(verdict: Verdict, findings: Findings) -> None:
    findings.not_recomputed.append(f"what was {verdict.summary.replace(':', ' is')}: nothing of the rows is left")


def _note_forgotten(verdict: Verdict, journal: Journal, findings: Findings) -> None:
    """Say that rows were forgotten since a verdict that is not found as it was."""
    if not findings.differences and not findings.missing:
        return
    decided = journal.recorded_at(verdict.verdict_id)
    since = [one for one in journal.verdicts("forget") if decided is not None and one.as_of > decided]
    if since:
        findings.missing.append(
            f"since this verdict, rows were forgotten on {', '.join(f'{one.as_of:%Y-%m-%d}' for one in since)} "
            f"({'; '.join(one.summary for one in since)}): what was computed from them cannot be computed again"
        )


_VERIFIERS = {
    "watch": verify_watch,
    "gate": verify_gate,
    "admission": verify_admission,
    "promotion": verify_promotion,
    "forget": _verify_forgotten,
}


def _kind(verdict: Verdict) -> str:
    return "admission" if "examination" in verdict.evidence else verdict.kind


def _find_verdict(agent: str, name: str, journal: Journal, findings: Findings) -> Verdict:
    """:raises ConfigError: if there is no such verdict."""
    if Path(name).is_file():
        return _read_file(agent, Path(name), journal, findings)
    if name == "last":
        verdicts = [one for one in journal.verdicts() if one.kind != "forget"]
        if not verdicts:
            raise ConfigError(f"nothing has been decided about agent {agent!r} yet: `python -m flows watch` decides")
        return verdicts[-1]
    verdict = journal.verdict(name)
    if verdict is None:
        raise ConfigError(
            f"agent {agent!r} has no verdict {name!r}, and there is no such file: `stillhouse history {agent}` lists "
            "the ids; or write `last`, or the path of a certificate"
        )
    return verdict


def _read_file(agent: str, file: Path, journal: Journal, findings: Findings) -> Verdict:
    """The verdict of a file, after a comparison with the journal."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        verdict = _judge_content(content)
    except (ValueError, TypeError, AttributeError) as error:  # also pydantic's ValidationError
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(
            f"{file} is no certificate, examination or verdict ({reason}): download `certificate.json` of the run of a "
            "refresh in MLflow"
        ) from error
    if verdict.agent != agent:
        raise ConfigError(f"{file} is about agent {verdict.agent!r}, not {agent!r}: name that agent")
    recorded = journal.verdict(verdict.verdict_id)
    if recorded is None:
        findings.missing.append(
            f"the journal has no verdict {verdict.verdict_id}: it belongs to another STILLHOUSE_HOME, or its table was "
            "restored from an older backup"
        )
    else:
        in_file, in_journal = (_dump_whole(one) for one in (verdict, recorded))
        findings.compare(f"the file {file.name} beside the journal", in_file, in_journal)
    return verdict


def _dump_whole(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON, its certificate with all defaults: a file states them, and the journal need not."""
    content = verdict.model_dump(mode="json")
    evidence = content["evidence"]
    for name, record in (("certificate", Certificate), ("examination", Examination)):
        if name in evidence:
            evidence[name] = record.model_validate(evidence[name]).model_dump(mode="json")
    return content


def _judge_content(content: dict[str, Any]) -> Verdict:
    """A stored verdict, or the verdict that follows from a certificate, an examination or the evidence of a watch."""
    if "verdict_id" in content:
        return Verdict.model_validate(content)
    if "challenger" in content:
        return gate.judge(Certificate.model_validate(content))
    if "answered" in content:
        return admission.judge(Examination.model_validate(content))
    return decide_from_evidence(content)
