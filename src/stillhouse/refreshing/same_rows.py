"""Figures on the same rows: what the gate compared, and every champion of interest on each new test window.

Two versions may be compared only on the same rows. The figures of a version's own test window say nothing about
another version, because another window may be easier.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from stillhouse.evaluate.comparing import lower_bound
from stillhouse.evaluate.gate import bound_confidence
from stillhouse.evaluate.scorecard import measure_quality
from stillhouse.quality import get_measure
from stillhouse.records import Certificate, ComparedModel, Comparison, ModelRef, Proof, SameRows
from stillhouse.refreshing.proving import load_earlier, make_predict
from stillhouse.refreshing.session import Session
from stillhouse.registry.metrics import metric_name
from stillhouse.stats import replace_non_finite

__all__ = ["compare_on_test_window", "continue_quality_curves", "gate_metrics", "plain_metrics"]


def compare_on_test_window(session: Session, proof: Proof, challenger: ModelRef) -> SameRows:
    """The challenger, the champion, the previous one, the first one and the teacher on the test window.

    What the proof has scored on these rows is taken from it; only the other models are scored here. A model that
    reads columns which the agent file no longer has, or that was deleted, is left out, and so is a teacher that
    answered some of the rows only.

    :param challenger: the version of the chosen variant.
    """
    certificate, test = proof.certificate, proof.certificate.challenger.test
    scores = {str(challenger): test.score} | dict(_list_known_scores(certificate))
    models = [ComparedModel(role="challenger", model=str(challenger), quality=test.score)]
    champions = session.registry.champions()
    roles: tuple[tuple[Literal["champion", "previous", "never_refreshed"], ModelRef | None], ...] = (
        ("champion", session.champion.model if session.champion else None),
        ("previous", session.registry.previous() if session.champion else None),
        ("never_refreshed", champions[0] if champions and session.champion else None),
    )
    for role, ref in roles:
        if ref is None:
            continue
        if str(ref) not in scores and (score := _score(session, str(ref))) is not None:
            scores[str(ref)] = score
        if str(ref) in scores:
            models.append(ComparedModel(role=role, model=str(ref), quality=scores[str(ref)]))
    if proof.teacher.test.rows == test.rows and proof.teacher.test.measure == test.measure:
        models.append(ComparedModel(role="teacher", model="teacher", quality=proof.teacher.test.score))
    return SameRows(
        window=session.job.test,
        rows=test.rows,
        measure=test.measure,
        better=test.judged.better,
        models=tuple(models),
    )


def continue_quality_curves(session: Session, same_rows: SameRows) -> None:
    """Add the figures to the curve of each role, and to the metric ``quality`` of each version's run.

    The challenger's run has its first point already.
    """
    registry, moment = session.registry, same_rows.window.end
    registry.runs.log_curves(moment, {one.role: one.quality for one in same_rows.models})
    versions = {one.model: one.quality for one in same_rows.models if one.role not in ("challenger", "teacher")}
    for name, quality in versions.items():
        registry.log_quality(name, moment, quality)


def plain_metrics(proof: Proof, same_rows: SameRows) -> dict[str, float]:
    """Metrics of the parent run whose names need no quotes in a search: the challenger's figures and its rivals'."""
    card = proof.certificate.challenger
    metrics = {"quality": card.test.score, "bytes": float(card.bytes)}
    if card.latency is not None:
        metrics["p95_ms"] = card.latency.p95_ms
    metrics |= {f"quality_{one.role}": one.quality for one in same_rows.models if one.role != "challenger"}
    test = next((one for one in proof.certificate.comparisons if _is_decisive(one)), None)
    if test is not None:
        metrics["gain"] = test.difference
        metrics["gain_low"] = lower_bound(test, bound_confidence(proof.certificate))
    return metrics


def gate_metrics(certificate: Certificate) -> dict[str, float]:
    """What the gate compared, by window and slice, each with both models on the same rows.

    ``gate/test/auc/challenger``, ``…/champion``, ``…/difference`` (oriented so that more is better) and
    ``…/lower_bound`` (of the difference); ``gate/origin:EWR/auc/…`` for a slice of the test window. Of ``anchor``,
    ``never_refreshed`` and ``best_earlier``, ``champion`` is that earlier champion.
    """
    confidence, metrics = bound_confidence(certificate), dict[str, float]()
    for comparison in certificate.comparisons:
        prefix = f"gate/{_name_window(comparison.window)}/{metric_name(comparison.measure)}"
        metrics |= {
            f"{prefix}/challenger": comparison.challenger,
            f"{prefix}/champion": comparison.champion,
            f"{prefix}/difference": comparison.difference,
            f"{prefix}/lower_bound": lower_bound(comparison, confidence),
        }
    return metrics


# --------------------------------------------------------------------------- inside


def _is_decisive(comparison: Comparison) -> bool:
    """Whether it compares with the champion on the whole test window in the named measure."""
    return comparison.window == "test" and comparison.role == "non_inferior"


def _list_known_scores(certificate: Certificate) -> Iterator[tuple[str, float]]:
    """Name and quality of the earlier models that the gate compared on the test window."""
    if certificate.champion is not None:
        yield certificate.champion.model, certificate.champion.test.score
    for comparison in certificate.comparisons:
        source = certificate.sources.model(comparison.window) if certificate.sources else None
        if source is not None and comparison.window in ("anchor", "never_refreshed"):
            yield source.name, comparison.champion


def _score(session: Session, name: str) -> float | None:
    """The quality of a version on the test window; None if it cannot be scored."""
    earlier = load_earlier(session, name)
    if earlier is None:
        return None
    rows = session.data.read_labelled(session.job.test)
    labels = rows["outcome"].to_numpy()
    predict, measure = make_predict(earlier.variant, session.settings.actions), get_measure(session.settings)
    probs = replace_non_finite(predict(rows), labels)
    return measure_quality(probs, labels, measure, rows, measure.play(predict, rows)).score


def _name_window(window: str) -> str:
    """A comparison's window as part of a metric's name; ``past, origin=EWR`` is the slice of another window."""
    before, comma, after = window.partition(", ")
    if comma and "=" not in before:
        return f"{metric_name(before)}/{metric_name(after)}"
    return metric_name(window)
