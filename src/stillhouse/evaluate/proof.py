"""Proof: score the models of a refresh on all windows, compare challenger and champion, and write the certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig
from stillhouse.evaluate.comparing import compare_models
from stillhouse.evaluate.gate import certify
from stillhouse.evaluate.scorecard import (
    measure_agreement,
    measure_disagreement,
    measure_quality,
    score_slices,
)
from stillhouse.evaluate.sources import Role, describe_model
from stillhouse.latency import measure_latency
from stillhouse.quality import ACCURACY, AGREEMENT, Answers, Measure, Policy, get_measure
from stillhouse.records import Comparison, ComparisonRole, Latency, ModelSource, Proof, Refresh, Scorecard
from stillhouse.stats import cluster_ids, replace_non_finite

__all__ = ["Contender", "Predict", "Yardsticks", "prove"]

Array = np.ndarray[Any, Any]
Predict = Callable[[pd.DataFrame], Array]


@dataclass(frozen=True)
class Contender:
    """A model to be scored.

    :ivar predict: raw rows to probabilities ``[n, K]``.
    :ivar policy: the same for rows that nobody observed, in the episodes that it plays; None: it plays none.
    :ivar bytes: size on disk.
    :ivar one_row: makes one decision as in serving, to measure latency; None: latency is not measured.
    :ivar folder: of a deployed model; its files go into the certificate by their checksum.
    """

    name: str
    role: Literal["teacher", "student", "variant", "champion"]
    predict: Predict
    bytes: int
    one_row: Callable[[], object] | None = None
    folder: Path | None = None
    policy: Policy | None = None


@dataclass(frozen=True)
class Yardsticks:
    """Earlier champions that a challenger is compared with on the test window, so that small losses do not add up.

    :param anchor: the champion that cumulative losses are measured against; None: the champion itself.
    :param never_refreshed: the first champion; None: it is the champion or the anchor.
    :param earlier: other earlier champions; the one that is best on the validation rows is compared.
    """

    anchor: Contender | None = None
    never_refreshed: Contender | None = None
    earlier: tuple[Contender, ...] = ()

    def describe(self) -> list[ModelSource]:
        """The files of those that were loaded from a folder."""
        by_role: list[tuple[Role, Contender | None]] = [
            ("anchor", self.anchor),
            ("never_refreshed", self.never_refreshed),
            *(("earlier", contender) for contender in self.earlier),
        ]
        return [
            describe_model(role, contender.name, contender.folder)
            for role, contender in by_role
            if contender is not None and contender.folder is not None
        ]


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
    yardsticks: Yardsticks = Yardsticks(),
    cpu: str = "",
) -> Proof:
    """Score every model on every window, and compare the chosen variant with the champion.

    :param windows: labelled rows (with ``outcome``) by name: ``validation`` (part of the training window, used for
        choosing), ``test`` (later than any training row, used for judging), optionally ``past`` (the window that the
        champion was proved on: forgetting is reported), and those of ``promotion.remember.windows`` (forgetting is a
        veto).
    :param chosen: name of the variant that compression proposes, without having used any test row; ``why`` says why.
    :param fits: whether it is within the budgets.
    :param yardsticks: earlier champions that the challenger is compared with as well.
    :param cpu: processor on which the latencies are measured.
    """
    contenders = [teacher, student, *variants, *([champion] if champion else [])]
    measure = get_measure(config)
    # the teacher has seen the outcomes of every window but the test window
    answers = {
        contender.role + contender.name: {
            name: _answer(contender, rows, measure, raw=contender is teacher)
            for name, rows in windows.items()
            if contender is not teacher or name == "test"
        }
        for contender in contenders
    }
    latencies = measure_latency({c.role + c.name: c.one_row for c in contenders if c.one_row is not None})
    teacher_probs = answers[teacher.role + teacher.name]["test"].probs
    has_teacher_probs = ~np.isnan(teacher_probs[:, 0])  # a teacher that costs money answers some rows only

    def scorecard(contender: Contender) -> Scorecard:
        key = contender.role + contender.name
        return _make_scorecard(
            config, measure, contender, answers[key], windows, latencies.get(key), teacher_probs, cpu
        )

    cards = [scorecard(variant) for variant in variants]
    challenger = next(card for card in cards if card.model == chosen)
    of_challenger = answers["variant" + chosen]
    champion_card = scorecard(champion) if champion else None
    comparisons: list[Comparison] = []
    if champion is not None:
        compare = _Comparing(config, measure, windows, of_challenger)
        comparisons = compare.with_champion(answers["champion" + champion.name]) + compare.with_earlier(yardsticks)
    return Proof(
        teacher=scorecard(teacher),
        student=scorecard(student),
        variants=tuple(cards),
        champion=champion_card,
        chosen=chosen,
        why=why,
        disagreement=measure_disagreement(
            teacher_probs[has_teacher_probs], of_challenger["test"].probs[has_teacher_probs]
        ),
        certificate=certify(
            config,
            refresh.refresh_id,
            refresh.as_of,
            challenger,
            champion_card,
            comparisons,
            "" if fits else why,
            anchor=None if champion is None else (yardsticks.anchor or champion).name,
            not_compared=[] if champion is None else _list_not_compared(config, windows, comparisons),
        ),
    )


def _answer(contender: Contender, rows: pd.DataFrame, measure: Measure, *, raw: bool = False) -> Answers:
    """The model's answers to all rows.

    :param raw: keep what is not finite: rows that a teacher was not asked about.
    """
    probs = contender.predict(rows)
    probs = probs if raw else replace_non_finite(probs, rows["outcome"].to_numpy())
    return Answers(probs, measure.play(contender.policy, rows))


def _make_scorecard(
    config: AgentConfig,
    measure: Measure,
    contender: Contender,
    answers: Mapping[str, Answers],
    windows: Mapping[str, pd.DataFrame],
    latency: Latency | None,
    teacher_probs: Array,
    cpu: str,
) -> Scorecard:
    has_teacher_probs = ~np.isnan(teacher_probs[:, 0])
    if contender.role == "teacher":
        answers = {"test": Answers(teacher_probs[has_teacher_probs], answers["test"].episodes)}
        windows = {"test": windows["test"][has_teacher_probs]}
    test, of_test = windows["test"], answers["test"].probs
    with_teacher = None
    if contender.role != "teacher":
        with_teacher = measure_agreement(teacher_probs[has_teacher_probs], of_test[has_teacher_probs])
    return Scorecard(
        model=contender.name,
        role=contender.role,
        quality={
            name: measure_quality(
                answer.probs, windows[name]["outcome"].to_numpy(), measure, windows[name], answer.episodes
            )
            for name, answer in answers.items()
        },
        slices=score_slices(test, of_test, test["outcome"].to_numpy(), config.promotion.slices, measure),
        agreement=with_teacher,
        bytes=contender.bytes,
        latency=latency,
        cpu=cpu,
    )


@dataclass(frozen=True)
class _Comparing:
    """Compares the challenger with other models on the windows of a refresh, in the named measure.

    :param challenger: its answers by window.
    """

    config: AgentConfig
    measure: Measure
    windows: Mapping[str, pd.DataFrame]
    challenger: Mapping[str, Answers]

    def with_champion(self, champion: Mapping[str, Answers]) -> list[Comparison]:
        """On the test window, its slices, and what must be remembered; accuracy and the past are looked at beside."""
        promotion, margins = self.config.promotion, self.config.margins
        comparisons = [self._compare("test", champion["test"], margins.test)]
        if self.measure.name not in (ACCURACY.name, AGREEMENT.name):
            margin = max(_ACCURACY_MARGIN, margins.test / self.measure.span)
            role: ComparisonRole = "no_harm" if self.measure.name == "log_loss" else "reported"
            comparisons.append(self._compare("test", champion["test"], margin, role=role, measure=ACCURACY))
        comparisons += self._compare_slices("test", champion["test"], promotion.slices)
        if "past" in self.windows:
            comparisons.append(self._compare("past", champion["past"], margins.slice, role="reported", can_grow=False))
            comparisons += self._compare_slices("past", champion["past"], promotion.remember.slices, can_grow=False)
        for window in promotion.remember.windows:
            if window.name in self.windows:
                answers = champion[window.name]
                comparisons.append(self._compare(window.name, answers, margins.slice, can_grow=False))
                comparisons += self._compare_slices(window.name, answers, promotion.remember.slices, can_grow=False)
        return [comparison for comparison in comparisons if comparison is not None]

    def with_earlier(self, yardsticks: Yardsticks) -> list[Comparison]:
        """On the test window, with earlier champions: the cumulative loss of promotions has its own margin."""
        test = self.windows["test"]
        by_name = {
            "anchor": yardsticks.anchor,
            "never_refreshed": yardsticks.never_refreshed,
            "best_earlier": self._find_best(yardsticks.earlier),
        }
        comparisons = [
            self._compare(
                "test", _answer(contender, test, self.measure), self.config.margins.total, name, role="cumulative"
            )
            for name, contender in by_name.items()
            if contender is not None
        ]
        return [comparison for comparison in comparisons if comparison is not None]

    def _find_best(self, contenders: Sequence[Contender]) -> Contender | None:
        """The best on the validation rows: the best on the test window would look better there than it is."""
        rows = self.windows["validation"]
        labels = rows["outcome"].to_numpy()
        if not contenders or not len(rows):
            return None

        def points(contender: Contender) -> float:
            probs = replace_non_finite(contender.predict(rows), labels)
            return self.measure.for_labels(labels, probs.shape[1]).points(probs, labels, rows)

        return max(contenders, key=points)

    def _compare_slices(
        self, window: str, champion: Answers, columns: Sequence[str], *, can_grow: bool = True
    ) -> list[Comparison | None]:
        """Each value of the columns that has enough rows."""
        rows = self.windows[window]
        prefix = "" if window == "test" else f"{window}, "
        comparisons = []
        for column in columns:
            for value in sorted(rows[column].dropna().unique()):
                mask = (rows[column] == value).to_numpy()
                if mask.sum() >= self.config.promotion.min_slice_rows:
                    comparisons.append(
                        self._compare(
                            window,
                            champion,
                            self.config.margins.slice,
                            f"{prefix}{column}={value}",
                            mask=mask,
                            can_grow=can_grow,
                        )
                    )
        return comparisons

    def _compare(
        self,
        window: str,
        other: Answers,
        margin: float,
        name: str = "",
        *,
        mask: Array | None = None,
        role: ComparisonRole = "non_inferior",
        can_grow: bool = True,
        measure: Measure | None = None,
    ) -> Comparison | None:
        rows, challenger = self.windows[window], self.challenger[window]
        if mask is not None:
            rows, challenger, other = rows[mask], challenger.select(mask), other.select(mask)
        return compare_models(
            name or window,
            rows["outcome"].to_numpy(),
            challenger.probs,
            other.probs,
            margin,
            cluster_ids(rows["observed_at"], self.config.promotion.cluster),
            measure=measure or self.measure,
            rows=rows,
            episodes=(challenger.episodes, other.episodes),
            role=role,
            can_grow=can_grow,
        )


_ACCURACY_MARGIN = 0.005  # of the accuracy that is looked at beside another measure


def _list_not_compared(
    config: AgentConfig, windows: Mapping[str, pd.DataFrame], comparisons: Sequence[Comparison]
) -> list[str]:
    """Windows that must be remembered and have too few labelled rows to be compared."""
    compared = {comparison.window for comparison in comparisons}
    return [
        f"the window {window.name!r} that must be remembered has {len(windows.get(window.name, ()))} rows with "
        "outcomes: too few to compare"
        for window in config.promotion.remember.windows
        if window.name not in compared
    ]
