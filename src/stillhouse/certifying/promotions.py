"""Verify a promotion, a rejection or a roll-back: it must fit into the history of champions, and its version exist."""

from __future__ import annotations

from stillhouse import config
from stillhouse.certifying.findings import Findings
from stillhouse.champion import open_registry
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Certificate, Verdict
from stillhouse.registry import Registry
from stillhouse.signing import read_signed_release

__all__ = ["verify_promotion"]

_ADVICE = "Restore MLflow's database and files from a backup"


def verify_promotion(verdict: Verdict, findings: Findings) -> None:
    """Check that the champion before is the one that the journal names, and that the new one was released."""
    registry, evidence = open_registry(verdict.agent), verdict.evidence
    before = _find_champion_before(verdict, registry, findings)
    findings.compare("the champion before, by the history in the journal", evidence.get("before"), before)
    if champion := evidence.get("champion"):
        _check_release(registry, str(champion), findings)
    findings.not_recomputed.append("the reason: a person or the pool gave it")


def _find_champion_before(verdict: Verdict, registry: Registry, findings: Findings) -> str | None:
    """The champion by all verdicts that the journal has before this one."""
    champion = None
    for earlier in KnowledgeBase(config.load(verdict.agent)).journal.verdicts():
        if earlier.verdict_id == verdict.verdict_id or earlier.as_of > verdict.as_of:
            break
        if earlier.kind == "promotion" and earlier.result in ("promoted", "rolled_back"):
            champion = str(earlier.evidence["champion"])
        elif earlier.kind == "gate" and earlier.result == "promoted":
            certificate = Certificate.model_validate(earlier.evidence["certificate"])
            with findings.noting_missing(f"the champion of gate {earlier.verdict_id}", _ADVICE):
                number = registry.version_of(certificate.refresh_id, certificate.challenger.model)
                champion = f"{verdict.agent}@{number}"
    return champion


def _check_release(registry: Registry, champion: str, findings: Findings) -> None:
    """The version must exist, and a trusted key must have signed and released it."""
    findings.checked.append(f"signature and release of {champion}")
    with findings.noting_missing(champion, _ADVICE):
        ref = registry.version(registry.agent, champion.rpartition("@")[2])
        if ref is None:
            findings.missing.append(f"{champion}: MLflow has no such version. {_ADVICE}")
            return
        registry.models.signed(ref)
        read_signed_release(registry.models.envelopes(ref)[1], champion)
