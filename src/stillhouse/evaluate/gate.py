"""The gate: a challenger must be proven no worse than the champion, and keep to the budgets.

:func:`judge` is a pure function of a :class:`~stillhouse.records.Certificate`: the same certificate always gives the
identical verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from stillhouse.config import AgentConfig
from stillhouse.evaluate.comparing import (
    RULE_VERSION,
    harm_limit,
    lower_bound,
    require_rule,
    rows_factor,
    upper_bound,
)
from stillhouse.evaluate.power import rows_needed
from stillhouse.quality import measure_title
from stillhouse.records import Certificate, Comparison, Reason, Scorecard, Verdict, short_id, words_for

__all__ = ["FIRST_LOOK_SHARE", "bound_confidence", "certify", "first_look_confidence", "judge", "next_anchor", "replay"]

FIRST_LOOK_SHARE = 0.8
"""Share of the error ``1 − promotion.confidence`` that the gate's first look spends. The sequential evidence of the
pool spends the rest, so that a challenger which is worse by the margin becomes champion by either with a probability of
at most ``1 − confidence``."""


def first_look_confidence(confidence: float) -> float:
    """The confidence of the gate's bounds under rule 3: ``1 −`` its share of the error.

    >>> round(first_look_confidence(0.95), 3)
    0.96
    """
    return 1 - FIRST_LOOK_SHARE * (1 - confidence)


def judge(certificate: Certificate) -> Verdict:
    """Promote, refuse, wait for a person's approval or for more labels: a pure function of the certificate.

    - Refused: a budget is exceeded, or the challenger is proven worse: on the test window at all (unless the champion
      itself exceeds a budget), on a slice, against an earlier champion by more than the margin, or in accuracy.
    - Inconclusive: nothing of that, and a comparison cannot prove that the challenger is no worse by more than its
      margin. The verdict says about how many more labels would decide.
    - Promoted, or awaiting approval: every comparison proves that. So a challenger that is worse by the margin or more
      on any of them is promoted here with a probability of at most ``1 − first_look_confidence``, and no correction for
      the number of comparisons is needed.

    Certificates of rules 1 and 2 are judged by their rule: what cannot be told was refused.

    :raises RegistryError: if the certificate was made by a newer rule.
    """
    require_rule(certificate.rule)
    reasons = _list_reasons(certificate)
    failed = [reason for reason in reasons if reason.failed]
    undecided = [reason for reason in reasons if reason.undecided]
    name, labels_needed = certificate.challenger.model, None
    if failed:
        result, summary = "refused", f"{name} refused: {failed[0].text}"
    elif undecided:
        labels_needed = _count_needed_labels(certificate)
        result, summary = "inconclusive", _summarize_undecided(name, labels_needed, undecided[0])
    elif certificate.approval == "manual":
        result, summary = "awaiting_approval", f"{name} passed; a person must promote it"
    else:
        rival = "no champion yet" if certificate.champion is None else "no worse than the champion"
        result, summary = "promoted", f"{name} promoted: {rival}, within the budgets"
    verdict = Verdict.model_validate(
        {
            "verdict_id": short_id(certificate.agent, "gate", certificate.refresh_id),
            "kind": "gate",
            "agent": certificate.agent,
            "as_of": certificate.as_of,
            "result": result,
            "response": "hold",
            "summary": summary,
            "reasons": reasons,
            "labels_needed": labels_needed,
            # unset fields are left out, so that a stored certificate is given back as it was stored
            "evidence": {"certificate": certificate.model_dump(mode="json", exclude_unset=True)},
        }
    )
    return words_for(certificate.labels).say_verdict(verdict)


def replay(verdict: Verdict) -> Verdict:
    """Judge again from the certificate in the verdict's evidence."""
    return judge(Certificate.model_validate(verdict.evidence["certificate"]))


def certify(
    config: AgentConfig,
    refresh_id: str,
    as_of: datetime,
    challenger: Scorecard,
    champion: Scorecard | None,
    comparisons: Sequence[Comparison],
    nothing_fits: str = "",
    anchor: str | None = None,
    not_compared: Sequence[str] = (),
) -> Certificate:
    """The certificate for :func:`judge`, with the agent's current budgets.

    :param nothing_fits: why no variant is within the budgets; empty: the challenger does.
    :param anchor: name of the earlier champion that cumulative losses are measured against.
    :param not_compared: what should not be forgotten and has too few rows to be compared.
    """
    certificate = Certificate(
        agent=config.agent,
        refresh_id=refresh_id,
        as_of=as_of,
        challenger=challenger,
        champion=champion,
        comparisons=tuple(comparisons),
        confidence=config.promotion.confidence,
        max_bytes=config.budgets.max_bytes,
        max_p95_ms=config.budgets.max_p95_ms,
        approval=config.promotion.approval,
        nothing_fits=nothing_fits,
        rule=RULE_VERSION,
        anchor=anchor,
        not_compared=tuple(not_compared),
    )
    if config.outcomes is not None:
        return certificate
    return certificate.model_copy(update={"labels": config.labels_are})


def next_anchor(certificate: Certificate) -> str | None:
    """The champion that cumulative losses are measured against after this certificate's challenger was promoted.

    The anchor is kept until a challenger is proven better than it, because only then earlier losses are recovered.

    :returns: its name, ``flights@3``; None: the new champion itself.
    """
    if certificate.champion is None or certificate.rule == 1:
        return None
    by_window = {comparison.window: comparison for comparison in _binding_comparisons(certificate)}
    comparison = by_window.get("anchor", by_window.get("test"))
    if comparison is not None and lower_bound(comparison, bound_confidence(certificate)) > 0:
        return None
    return certificate.anchor or certificate.champion.model


def _binding_comparisons(certificate: Certificate) -> list[Comparison]:
    """The comparisons that must prove something, in the named measure."""
    return [comparison for comparison in certificate.comparisons if comparison.role in ("non_inferior", "cumulative")]


def bound_confidence(certificate: Certificate) -> float:
    """The confidence of each bound of a difference, by the rule of the certificate."""
    return certificate.confidence if certificate.rule <= 2 else first_look_confidence(certificate.confidence)


# --------------------------------------------------------------------------- labels that would decide


def _count_needed_labels(certificate: Certificate) -> int | None:
    """About how many more outcomes would decide all that is undecided; None: not foreseeable."""
    confidence = bound_confidence(certificate)
    undecided = [
        comparison
        for comparison in _binding_comparisons(certificate)
        if _judge_comparison(comparison, confidence, loss_allowed=False).undecided
    ]
    counts = [_needed_labels(comparison, confidence, certificate.challenger.test.rows) for comparison in undecided]
    known = [count for count in counts if count is not None]
    return max(known) if known and len(known) == len(counts) else None


def _needed_labels(comparison: Comparison, confidence: float, test_rows: int) -> int | None:
    """More outcomes in all that would decide this comparison; of a slice, at its present share of the rows.

    :returns: None if that is not foreseeable, or more episodes would decide and not more outcomes.
    """
    factor = rows_factor(comparison, confidence) if comparison.on == "rows" else None
    return None if factor is None else max(1, math.ceil((factor - 1) * test_rows))


def _summarize_undecided(name: str, labels_needed: int | None, reason: Reason) -> str:
    if labels_needed is None:
        return f"{name} inconclusive: {reason.text}"
    return f"{name} inconclusive: about {labels_needed:,} more labels would decide: {reason.text}"


# --------------------------------------------------------------------------- reasons


def _list_reasons(certificate: Certificate) -> list[Reason]:
    """Budgets, comparisons, and what was not compared."""
    reasons = [_budget_reason(certificate, *budget) for budget in _list_budgets(certificate)]
    if certificate.nothing_fits:
        reasons.insert(0, Reason(measure="compression", failed=True, text=certificate.nothing_fits))
    if certificate.champion is None:
        reasons.append(_better_than_chance_reason(certificate.challenger))
    elif not any(comparison.window == "test" for comparison in _binding_comparisons(certificate)):
        reasons.append(_not_compared_reason(certificate))
    loss_allowed = certificate.champion is not None and _exceeds_budget(certificate, certificate.champion)
    judge_comparison = _judge_by_rule_2 if certificate.rule <= 2 else _judge_comparison
    reasons += [
        judge_comparison(comparison, bound_confidence(certificate), loss_allowed=loss_allowed)
        for comparison in certificate.comparisons
    ]
    reasons += [Reason(measure="remember", failed=False, text=text) for text in certificate.not_compared]
    if certificate.contract_skipped:
        text = f"the data contract was not checked: {certificate.contract_skipped}"
        reasons.append(Reason(measure="data_contract", failed=False, text=text))
    return reasons


def _list_budgets(certificate: Certificate) -> list[tuple[str, float | None, float, str]]:
    """Measure, value (None: not measured), limit and unit of each budget."""
    card = certificate.challenger
    budgets: list[tuple[str, float | None, float, str]] = []
    if certificate.max_bytes is not None:
        budgets.append(("bytes", card.bytes, certificate.max_bytes, "bytes"))
    if certificate.max_p95_ms is not None:
        measured = card.latency.p95_ms if card.latency else None
        budgets.append(("p95_ms", measured, certificate.max_p95_ms, "ms (p95)"))
    return budgets


def _exceeds_budget(certificate: Certificate, card: Scorecard) -> bool:
    """Whether the model of ``card`` exceeds a budget of the certificate."""
    as_challenger = certificate.model_copy(update={"challenger": card})
    return any(_budget_reason(as_challenger, *budget).failed for budget in _list_budgets(as_challenger))


def _budget_reason(certificate: Certificate, measure: str, value: float | None, limit: float, unit: str) -> Reason:
    if value is None:
        text = f"{certificate.challenger.model} was not measured against the budget of {limit:.6g} {unit}"
        return Reason(measure=measure, threshold=limit, failed=True, text=text)
    failed = value > limit
    relation = "above" if failed else "within"
    text = f"{certificate.challenger.model} has {value:.6g} {unit}, {relation} the budget of {limit:.6g}"
    return Reason(measure=measure, value=value, threshold=limit, failed=failed, text=text)


def _better_than_chance_reason(card: Scorecard) -> Reason:
    auc = card.test.auc
    failed = auc is None or auc <= 0.5
    of = "" if card.test.actions == 2 else " (mean over the actions, each against the others)"
    text = f"test AUC {auc:.4f}{of} against chance .5" if auc is not None else "no AUC: the test window has one outcome"
    return Reason(measure="auc", value=auc, threshold=0.5, failed=failed, text=text)


def _not_compared_reason(certificate: Certificate) -> Reason:
    champion, test = certificate.champion, certificate.challenger.test
    text = (
        f"the test window ({test.rows} rows) has too few outcomes of each action to compare the challenger with "
        f"{champion.model if champion else 'the champion'}: at least ten of either, in at least ten clusters"
    )
    refuses = certificate.rule <= 2
    return Reason(measure=f"{test.measure}:test", failed=refuses, undecided=not refuses, text=text)


def _judge_comparison(comparison: Comparison, confidence: float, *, loss_allowed: bool = False) -> Reason:
    """One-sided: passed if the lower bound of the gain is at least −margin, failed if the challenger is proven harmful.

    :param loss_allowed: whether on the test window the challenger may be proven worse within the margin.
    """
    low, high = lower_bound(comparison, confidence), upper_bound(comparison, confidence)
    limit, margin = harm_limit(comparison), comparison.margin
    passed, harmful = low >= -margin, high < limit
    is_test = comparison.window == "test" and comparison.role == "non_inferior"
    vetoes = comparison.role != "reported"
    failed = vetoes and harmful and (not passed or (is_test and not loss_allowed))
    undecided = comparison.role in ("non_inferior", "cumulative") and not passed and not failed
    shows_upper = failed or comparison.role == "no_harm"
    value, threshold, side = (high, limit, "upper") if shows_upper else (low, -margin, "lower")
    text = f"{_describe_rows(comparison)} the challenger {_describe_result(comparison, low, high)}: "
    text += f"{measure_title(comparison.measure)} {comparison.challenger:.4f} against {comparison.champion:.4f}, "
    text += f"{side} {_format_percent(confidence)} bound of the gain {value:+.4f}{_format_unit(comparison)}"
    text += _describe_changed_rows(comparison)
    if undecided:
        text += _explain_undecided(comparison, confidence)
    return Reason(
        measure=f"{comparison.measure}:{comparison.window}",
        value=value,
        threshold=threshold,
        failed=failed,
        undecided=undecided,
        text=text,
    )


_AGAINST = {
    "anchor": "the test window, against the champion that cumulative losses are measured from",
    "never_refreshed": "the test window, against the first champion",
    "best_earlier": "the test window, against the best earlier champion",
    "past": "the window on which the champion was proved",
}


def _describe_rows(comparison: Comparison) -> str:
    how = ", reported only" if comparison.role == "reported" else ""
    return f"on {_AGAINST.get(comparison.window, comparison.window)} ({comparison.rows} {comparison.on}{how})"


def _describe_result(comparison: Comparison, low: float, high: float) -> str:
    """What the bounds prove about the challenger."""
    margin = f"{comparison.margin:.4g}{_format_unit(comparison)}"
    if comparison.role == "no_harm":
        return f"is {'' if high < -comparison.margin else 'not proven '}worse by more than {margin}"
    if low >= -comparison.margin:
        return f"is worse, though not by more than {margin}" if high < 0 else f"is not worse by more than {margin}"
    if high < -comparison.margin:
        return f"is worse by more than {margin}"
    return f"is worse, perhaps by more than {margin}" if high < 0 else f"may be worse by more than {margin}"


def _describe_changed_rows(comparison: Comparison) -> str:
    if comparison.lost is None or comparison.gained is None:
        return ""
    if comparison.measure in ("accuracy", "agreement"):
        return f"; only the challenger is right on {comparison.gained} rows, only the champion on {comparison.lost}"
    gained = f"{comparison.gained} {comparison.on}"
    return f"; the challenger's score is better on {gained}, the champion's on {comparison.lost}"


def _explain_undecided(comparison: Comparison, confidence: float) -> str:
    """How many rows, or episodes, would decide."""
    if comparison.on == "episodes":
        return _explain_more_episodes(comparison, confidence)
    if not comparison.can_grow:
        return "; later outcomes add no rows to this window: lengthen it, or raise `promotion.slice_margin`"
    factor = rows_factor(comparison, confidence)
    few = _explain_too_few_rows(comparison, confidence)
    if factor is None:
        return few + "; no number of rows like these would decide"
    return few + f"; {math.ceil((factor - 1) * comparison.rows):,} more rows like these would decide"


def _explain_more_episodes(comparison: Comparison, confidence: float) -> str:
    factor = rows_factor(comparison.model_copy(update={"can_grow": True}), confidence)
    if factor is None:
        return "; no number of episodes like these would decide"
    return f"; {math.ceil(factor * comparison.rows):,} episodes would decide: raise `quality.own.episodes`"


def _format_unit(comparison: Comparison) -> str:
    return f" {comparison.unit}" if comparison.unit else ""


def _judge_by_rule_2(comparison: Comparison, confidence: float, *, loss_allowed: bool = False) -> Reason:
    """Rules 1 and 2, one-sided: the lower bound of the difference must not be below −margin.

    On the test window, the upper bound must not be below 0 either.

    :param loss_allowed: whether the challenger may be proven worse within the margin.
    """
    low, name = lower_bound(comparison, confidence), comparison.window
    compared_on = (
        "the test window, against the champion that cumulative losses are measured from" if name == "anchor" else name
    )
    where = f"on {compared_on} ({comparison.rows} rows)"
    measured = f"{comparison.measure} {comparison.challenger:.4f} against {comparison.champion:.4f}"
    value, limit, failed, percent = low, -comparison.margin, low < -comparison.margin, _format_percent(confidence)
    verb, side = "may be worse by" if failed else "is not worse by", "lower"
    if comparison.rule > 1 and name == "test" and not (failed or loss_allowed):
        high = upper_bound(comparison, confidence)
        if high < 0:
            value, limit, failed, verb, side = high, 0.0, True, "is worse, though not by", "upper"
    text = (
        f"{where} the challenger {verb} more than {comparison.margin}: {measured}, "
        f"{side} {percent} bound of the difference {value:+.4f}"
    )
    if comparison.lost is not None and comparison.gained is not None:
        text += f"; only the challenger is right on {comparison.gained} rows, only the champion on {comparison.lost}"
    if failed:
        text += _explain_too_few_rows(comparison, confidence)
    return Reason(measure=f"{comparison.measure}:{name}", value=value, threshold=limit, failed=failed, text=text)


def _explain_too_few_rows(comparison: Comparison, confidence: float) -> str:
    """A text saying that no equal challenger could pass on so few rows; empty if one could."""
    evidence = comparison.evidence
    if evidence is None or comparison.margin <= 0:
        return ""
    unit: str = comparison.on if evidence.clusters == comparison.rows else "clusters of rows"
    available = evidence.effective
    if comparison.rarer is not None:
        available, unit = comparison.rarer, "rows of the rarer outcome"
    needed = rows_needed(comparison.margin, confidence, span=comparison.span)
    if needed is None or available >= needed:
        return ""
    return (
        f"; at least {needed} {unit} are needed to prove a margin of {comparison.margin} at "
        f"{_format_percent(confidence)}; the window has {int(available + 1e-6)}"
    )


def _format_percent(confidence: float) -> str:
    return f"{100 * confidence:.4g}%"
