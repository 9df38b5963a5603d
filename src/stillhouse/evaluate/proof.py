"""Proof: score the models of a refresh on all windows, compare challenger and champion, and write the certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig
from stillhouse.evaluate.gate import certify, compare_models
from stillhouse.evaluate.scorecard import (
    measure_agreement,
    measure_disagreement,
    measure_quality,
    replace_non_finite,
    score_slices,
)
from stillhouse.latency import measure_latency
from stillhouse.records import Comparison, Latency, Proof, Refresh, Scorecard
from stillhouse.stats import cluster_ids

__all__ = ["Contender", "Predict", "prove"]

Array = np.ndarray[Any, Any]
Predict = Callable[[pd.DataFrame], Array]


@dataclass(frozen=True)
class Contender:
    """A model to be scored.

    :ivar predict: raw rows to probabilities ``[n, K]``.
    :ivar bytes: size on disk.
    :ivar one_row: makes one decision as in serving, to measure latency; None: latency is not measured.
    """

    name: str
    role: Literal["teacher", "student", "variant", "champion"]
    predict: Predict
    bytes: int
    one_row: Callable[[], object] | None = None


def prove(
    config: AgentConfig,
    refresh: Refresh,
    windows: Mapping[str, pd.DataFrame],
    *,
    teacher: Contender,
    student: Contender,
    variants: Sequence[Contender],
    chosen: str,
    why: str,
    fits: bool,
    champion: Contender | None,
    anchor: Contender | None = None,
    cpu: str = "",
) -> Proof:
    """Score every model on every window, and compare the chosen variant with the champion.

    :param windows: labelled rows (with ``outcome``) by name: ``validation`` (part of the training window, used for
        choosing), ``test`` (later than any training row, used for judging), and optionally ``past`` (the window that
        the champion was proved on: a challenger that has forgotten it is refused).
    :param chosen: name of the variant that compression proposes, without having used any test row; ``why`` says why.
    :param fits: whether it is within the budgets.
    :param anchor: the earlier champion that cumulative losses are measured against; None: the champion itself.
    :param cpu: processor on which the latencies are measured.
    """
    contenders = [teacher, student, *variants, *([champion] if champion else [])]
    # the teacher has seen the outcomes of every window but the test window
    probs = {
        contender.role + contender.name: {
            name: contender.predict(rows)
            if contender is teacher
            else replace_non_finite(contender.predict(rows), rows["outcome"].to_numpy())
            for name, rows in windows.items()
            if contender is not teacher or name == "test"
        }
        for contender in contenders
    }
    latencies = measure_latency({c.role + c.name: c.one_row for c in contenders if c.one_row is not None})
    teacher_probs = probs[teacher.role + teacher.name]["test"]
    has_teacher_probs = ~np.isnan(teacher_probs[:, 0])  # a teacher that costs money answers some rows only

    def scorecard(contender: Contender) -> Scorecard:
        key = contender.role + contender.name
        return _make_scorecard(config, contender, probs[key], windows, latencies.get(key), teacher_probs, cpu)

    cards = [scorecard(variant) for variant in variants]
    challenger = next(card for card in cards if card.model == chosen)
    challenger_probs = probs["variant" + chosen]
    champion_card = scorecard(champion) if champion else None
    comparisons = []
    if champion is not None:
        comparisons = _compare_on_windows(config, windows, challenger_probs, probs["champion" + champion.name])
    if champion is not None and anchor is not None:
        comparisons += _compare_with_anchor(config, windows["test"], challenger_probs["test"], anchor)
    return Proof(
        teacher=scorecard(teacher),
        student=scorecard(student),
        variants=tuple(cards),
        champion=champion_card,
        chosen=chosen,
        why=why,
        disagreement=measure_disagreement(
            teacher_probs[has_teacher_probs], challenger_probs["test"][has_teacher_probs]
        ),
        certificate=certify(
            config,
            refresh.refresh_id,
            refresh.as_of,
            challenger,
            champion_card,
            comparisons,
            "" if fits else why,
            anchor=None if champion is None else (anchor or champion).name,
        ),
    )


def _make_scorecard(
    config: AgentConfig,
    contender: Contender,
    probs: Mapping[str, Array],
    windows: Mapping[str, pd.DataFrame],
    latency: Latency | None,
    teacher_probs: Array,
    cpu: str,
) -> Scorecard:
    has_teacher_probs = ~np.isnan(teacher_probs[:, 0])
    if contender.role == "teacher":
        probs, windows = {"test": teacher_probs[has_teacher_probs]}, {"test": windows["test"][has_teacher_probs]}
    test = windows["test"]
    with_teacher = None
    if contender.role != "teacher":
        with_teacher = measure_agreement(teacher_probs[has_teacher_probs], probs["test"][has_teacher_probs])
    return Scorecard(
        model=contender.name,
        role=contender.role,
        quality={name: measure_quality(p, windows[name]["outcome"].to_numpy()) for name, p in probs.items()},
        slices=score_slices(test, probs["test"], test["outcome"].to_numpy(), config.promotion.slices),
        agreement=with_teacher,
        bytes=contender.bytes,
        latency=latency,
        cpu=cpu,
    )


def _compare_on_windows(
    config: AgentConfig,
    windows: Mapping[str, pd.DataFrame],
    challenger: Mapping[str, Array],
    champion: Mapping[str, Array],
) -> list[Comparison]:
    """Challenger and champion on the test window, on the past window, and on the slices of the test window."""
    promotion = config.promotion
    comparisons = []
    for name, margin in (("test", promotion.non_inferiority_margin), ("past", promotion.slice_margin)):
        if name in windows:
            rows = windows[name]
            labels, clusters = rows["outcome"].to_numpy(), cluster_ids(rows["observed_at"], promotion.cluster)
            comparisons.append(compare_models(name, labels, challenger[name], champion[name], margin, clusters))
    test = windows["test"]
    labels, clusters = test["outcome"].to_numpy(), cluster_ids(test["observed_at"], promotion.cluster)
    for column in promotion.slices:
        for value in sorted(test[column].dropna().unique()):
            mask = (test[column] == value).to_numpy()
            if mask.sum() >= promotion.min_slice_rows:
                name, margin = f"{column}={value}", promotion.slice_margin
                pair = challenger["test"][mask], champion["test"][mask]
                comparisons.append(compare_models(name, labels[mask], *pair, margin, clusters[mask]))
    return [comparison for comparison in comparisons if comparison is not None]


def _compare_with_anchor(
    config: AgentConfig, test: pd.DataFrame, challenger: Array, anchor: Contender
) -> list[Comparison]:
    """Challenger and anchor on the test window: the cumulative loss of consecutive promotions has its own margin."""
    promotion = config.promotion
    labels, clusters = test["outcome"].to_numpy(), cluster_ids(test["observed_at"], promotion.cluster)
    comparison = compare_models(
        "anchor", labels, challenger, anchor.predict(test), promotion.cumulative_margin, clusters
    )
    return [] if comparison is None else [comparison]
