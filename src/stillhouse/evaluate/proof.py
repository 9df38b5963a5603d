"""From a refresh's models and the windows they are judged on to a certificate that the gate can judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig
from stillhouse.evaluate.gate import certify, compare
from stillhouse.evaluate.scorecard import agreement, as_wrong, disagreement, quality, slices
from stillhouse.latency import measure_latency
from stillhouse.records import Comparison, Latency, Proof, Refresh, Scorecard
from stillhouse.stats import cluster_ids

__all__ = ["Contender", "Predict", "prove"]

Predict = Callable[[pd.DataFrame], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Contender:
    """A model to be judged.

    :param predict: raw rows to probabilities ``[n, K]``.
    :param one_row: one decision, as the serving machine makes it; None: latency is not measured.
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
    """Score every model on every window, compare the chosen variant with the champion.

    :param chosen: name of the variant that compression puts forward, which has seen no test row; ``why`` in a sentence.
    :param fits: whether it keeps to the budgets.
    :param windows: labelled rows (with ``outcome``) by name: ``validation`` (held out inside the training window,
        used to choose), ``test`` (later than any training row, used to judge), and ``past`` if there is one (the
        window that the champion was proved on: a challenger that has forgotten it is refused).
    :param anchor: the earlier champion that losses are added up from; None: the champion itself.
    :param cpu: processor that the latencies are measured on.
    """
    candidates = [teacher, student, *variants, *([champion] if champion else [])]
    # The teacher has seen the outcomes of every window but the test.
    said = {
        candidate.role + candidate.name: {
            name: candidate.predict(rows)
            if candidate is teacher
            else as_wrong(candidate.predict(rows), rows["outcome"].to_numpy())
            for name, rows in windows.items()
            if candidate is not teacher or name == "test"
        }
        for candidate in candidates
    }
    latencies = measure_latency({c.role + c.name: c.one_row for c in candidates if c.one_row is not None})
    reference = said[teacher.role + teacher.name]["test"]
    spoken = ~np.isnan(reference[:, 0])  # a teacher that costs money is asked about some rows only

    def card(candidate: Contender) -> Scorecard:
        key = candidate.role + candidate.name
        return _scorecard(config, candidate, said[key], windows, latencies.get(key), reference, cpu)

    cards = [card(variant) for variant in variants]
    challenger = next(each for each in cards if each.model == chosen)
    chosen_says = said["variant" + chosen]
    champion_card = card(champion) if champion else None
    comparisons = [] if champion is None else _compare(config, windows, chosen_says, said["champion" + champion.name])
    if champion is not None and anchor is not None:
        comparisons += _compare_with_anchor(config, windows["test"], chosen_says["test"], anchor)
    return Proof(
        teacher=card(teacher),
        student=card(student),
        variants=tuple(cards),
        champion=champion_card,
        chosen=chosen,
        why=why,
        disagreement=disagreement(reference[spoken], chosen_says["test"][spoken]),
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


def _scorecard(
    config: AgentConfig,
    candidate: Contender,
    said: Mapping[str, np.ndarray[Any, Any]],
    windows: Mapping[str, pd.DataFrame],
    latency: Latency | None,
    teacher_says: np.ndarray[Any, Any],
    cpu: str,
) -> Scorecard:
    spoken = ~np.isnan(teacher_says[:, 0])
    if candidate.role == "teacher":
        said, windows = {"test": teacher_says[spoken]}, {"test": windows["test"][spoken]}
    test = windows["test"]
    return Scorecard(
        model=candidate.name,
        role=candidate.role,
        quality={name: quality(p, windows[name]["outcome"].to_numpy()) for name, p in said.items()},
        slices=slices(test, said["test"], test["outcome"].to_numpy(), config.promotion.slices),
        agreement=None if candidate.role == "teacher" else agreement(teacher_says[spoken], said["test"][spoken]),
        bytes=candidate.bytes,
        latency=latency,
        cpu=cpu,
    )


def _compare(
    config: AgentConfig,
    windows: Mapping[str, pd.DataFrame],
    challenger: Mapping[str, np.ndarray[Any, Any]],
    champion: Mapping[str, np.ndarray[Any, Any]],
) -> list[Comparison]:
    """Challenger against champion on the test window, on the past one, and on the slices of the test window."""
    promotion = config.promotion
    found = []
    for name, margin in (("test", promotion.non_inferiority_margin), ("past", promotion.slice_margin)):
        if name in windows:
            rows = windows[name]
            outcomes, clusters = rows["outcome"].to_numpy(), cluster_ids(rows["observed_at"], promotion.cluster)
            found.append(compare(name, outcomes, challenger[name], champion[name], margin, clusters))
    test = windows["test"]
    outcomes, clusters = test["outcome"].to_numpy(), cluster_ids(test["observed_at"], promotion.cluster)
    for column in promotion.slices:
        for value in sorted(test[column].dropna().unique()):
            chosen = (test[column] == value).to_numpy()
            if chosen.sum() >= promotion.min_slice_rows:
                pair = challenger["test"][chosen], champion["test"][chosen]
                margin = promotion.slice_margin
                found.append(compare(f"{column}={value}", outcomes[chosen], *pair, margin, clusters[chosen]))
    return [comparison for comparison in found if comparison is not None]


def _compare_with_anchor(
    config: AgentConfig, test: pd.DataFrame, challenger: np.ndarray[Any, Any], anchor: Contender
) -> list[Comparison]:
    """On the test window: what promotions in a row have lost together must keep to their common margin."""
    promotion = config.promotion
    outcomes, clusters = test["outcome"].to_numpy(), cluster_ids(test["observed_at"], promotion.cluster)
    found = compare("anchor", outcomes, challenger, anchor.predict(test), promotion.cumulative_margin, clusters)
    return [] if found is None else [found]
