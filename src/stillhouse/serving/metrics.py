"""Prometheus metrics: the counts of all workers, including those that died.

Each worker counts in plain numbers, at almost no cost per request, and writes a snapshot into the server's folder once
a second. The worker that answers ``/metrics`` adds its own counts to all snapshots. A process that dies leaves its last
snapshot, so no counter ever decreases; at most its last second of counts is lost.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import get_args

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from stillhouse.records import PromiseStatus
from stillhouse.runtime.agent import Decision, PendingDecisions
from stillhouse.runtime.ranking import Ranking
from stillhouse.runtime.status import Component, Status
from stillhouse.serving.reports import write_file

__all__ = ["CONTENT_TYPE_LATEST", "Counts", "Metrics"]

_SECONDS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SLOW_BUCKETS = (*_SECONDS_BUCKETS, 10.0, 30.0, 60.0, 120.0, 300.0)
_CONFIDENCE_BUCKETS = tuple(i / 20 for i in range(1, 21))

_COUNTERS = {
    "requests": ("HTTP requests answered", ("endpoint", "status")),
    "decisions": ("Decisions recorded", ("agent", "decider", "version")),
    "outside_contract": ("Values outside the data contract, decided all the same", ("agent", "column", "rule")),
    "rankings": ("Rankings recorded; each candidate shown is also a decision", ("agent",)),
    "offered": ("Candidates that rankings chose from", ("agent",)),
    "outcomes": ("Outcomes recorded", ("agent",)),
    "handed_in": ("Decisions made elsewhere and handed in, also those that are repeated", ("agent",)),
    "teacher_calls": ("Calls of the cascade to teachers", ("agent", "teacher")),
    "teacher_rows": ("Rows that the cascade asked teachers about", ("agent", "teacher")),
    "teacher_cost": ("Cost of these calls, in the unit of the prices in the agent file", ("agent", "teacher")),
    "door_requests": ("Requests at the front door", ("route", "result")),
    "door_captures": ("Requests that the door may record, by what became of the record", ("result",)),
    "door_unrecognised": ("Requests that are no task and were passed on unrecorded", ("reason",)),
    "door_failures": ("Failures of the door after which the request was passed on", ("where",)),
}
_HISTOGRAMS = {
    "request_seconds": ("From a request's arrival to its response", ("endpoint",), _SECONDS_BUCKETS),
    "door_seconds": (
        "From a request's arrival at the door to the end of its response",
        ("route", "result"),
        _SLOW_BUCKETS,
    ),
    "confidence": ("The decider's probability for the action", ("agent", "decider"), _CONFIDENCE_BUCKETS),
}

_DOOR_COUNTERS = {"captures": "door_captures", "unrecognised": "door_unrecognised", "failed": "door_failures"}

LabelValues = tuple[str, ...]


class Counts(msgspec.Struct):
    """Counters and histograms by metric and label values.

    >>> counts = Counts()
    >>> counts.add("outcomes", ("flights",), 3)
    >>> counts.counters["outcomes"]
    {('flights',): 3}
    """

    counters: dict[str, dict[LabelValues, float]] = msgspec.field(
        default_factory=lambda: {name: {} for name in _COUNTERS}
    )
    histograms: dict[str, dict[LabelValues, list[float]]] = msgspec.field(
        default_factory=lambda: {name: {} for name in _HISTOGRAMS}
    )
    """The number of values in each bucket, the number above the last bucket, and the sum of all values."""

    def add(self, name: str, labels: LabelValues, amount: float = 1) -> None:
        """Increase a counter."""
        series = self.counters[name]
        series[labels] = series.get(labels, 0) + amount

    def observe(self, name: str, labels: LabelValues, values: Iterable[float]) -> None:
        """Add values to a histogram."""
        bounds, series = _HISTOGRAMS[name][2], self.histograms[name]
        buckets = series.get(labels)
        if buckets is None:
            buckets = series[labels] = [0.0] * (len(bounds) + 2)
        for value in values:
            buckets[bisect_left(bounds, value)] += 1
            buckets[-1] += value

    def merge(self, other: Counts) -> None:
        """Add all counts of ``other``."""
        for name, by_labels in other.counters.items():
            for labels, value in by_labels.items():
                self.add(name, labels, value)
        for name, series in other.histograms.items():
            for labels, values in series.items():
                own = self.histograms[name].get(labels, [0.0] * len(values))
                self.histograms[name][labels] = [a + b for a, b in zip(own, values, strict=True)]


_snapshot_decoder = msgspec.msgpack.Decoder(Counts)


class Metrics:
    """One worker's counts, and the snapshots of the others.

    :param folder: of the server's snapshots; None: this process is the only one.
    :param name: of this process, never used before in this folder.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self.folder, self.name = folder, name
        self._file = None if folder is None else folder / f"{name}.counts"
        self.counts = Counts()

    def count_request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self.counts.add("requests", (endpoint, str(status)))
        self.counts.observe("request_seconds", (endpoint,), (seconds,))

    def count_decisions(self, agent: str, pending: PendingDecisions, decisions: Sequence[Decision]) -> None:
        """Count recorded decisions, their warnings, and the cascade's calls to teachers."""
        confidences_by_decider: dict[tuple[str, str], list[float]] = {}
        for decision in decisions:
            confidences_by_decider.setdefault((decision.decider, decision.version), []).append(decision.confidence)
        for (decider, version), confidences in confidences_by_decider.items():
            self.counts.add("decisions", (agent, decider, version), len(confidences))
            self.counts.observe("confidence", (agent, decider), confidences)
        for warning in chain.from_iterable(pending.warnings.values()):
            self.counts.add("outside_contract", (agent, warning.column, warning.rule))
        for event in pending.teacher_events:
            for teacher, spent in event.spending.items():
                self.counts.add("teacher_calls", (agent, teacher), spent.get("calls", 0))
                self.counts.add("teacher_rows", (agent, teacher), spent.get("rows", 0))
                self.counts.add("teacher_cost", (agent, teacher), spent.get("money", 0))

    def count_ranking(self, agent: str, ranking: Ranking) -> None:
        """Count a recorded ranking and the candidates that were offered."""
        self.counts.add("rankings", (agent,))
        self.counts.add("offered", (agent,), ranking.offered)

    def count_door(self, route: str, result: str, seconds: float) -> None:
        """Count a request at the front door."""
        self.counts.add("door_requests", (route, result))
        self.counts.observe("door_seconds", (route, result), (seconds,))

    def count_records(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Add the door's counts of captures, unrecognised requests and failures."""
        for (what, result), number in counts.items():
            self.counts.add(_DOOR_COUNTERS[what], (result,), number)

    def save(self) -> None:
        """Replace this worker's snapshot atomically.

        :raises OSError: if the disk refuses; the previous snapshot stays.
        """
        if self._file is not None:
            write_file(self._file, msgspec.msgpack.encode(self.counts))

    def render(self, statuses: Sequence[Status]) -> bytes:
        """All workers' counts and the agents' statuses, in Prometheus's text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_MetricFamilies(self.total(), statuses))
        return generate_latest(registry)

    def total(self) -> Counts:
        """The counts of all workers."""
        total = Counts()
        total.merge(self.counts)
        for file in () if self.folder is None else self.folder.glob("*.counts"):
            if file != self._file:
                with suppress(OSError, msgspec.MsgspecError, ValueError, KeyError):  # the file was removed or damaged
                    total.merge(_snapshot_decoder.decode(file.read_bytes()))
        return total


class _MetricFamilies(Collector):
    """Counts and statuses as Prometheus metric families."""

    def __init__(self, counts: Counts, statuses: Sequence[Status]) -> None:
        self._counts, self._statuses = counts, statuses

    def collect(self) -> Iterator[Metric]:
        for name, (text, labels) in _COUNTERS.items():
            counter = CounterMetricFamily(f"stillhouse_{name}", text, labels=labels)
            for values, value in sorted(self._counts.counters[name].items()):
                counter.add_metric(values, value)
            yield counter
        for name, (text, labels, bounds) in _HISTOGRAMS.items():
            histogram = HistogramMetricFamily(f"stillhouse_{name}", text, labels=labels)
            for values, buckets in sorted(self._counts.histograms[name].items()):
                histogram.add_metric(values, _cumulative_buckets(bounds, buckets), sum_value=buckets[-1])
            yield histogram
        for name, text, value_of in _GAUGES:
            gauge = GaugeMetricFamily(f"stillhouse_{name}", text, labels=["agent"])
            for status in self._statuses:
                if (gauge_value := value_of(status)) is not None:
                    gauge.add_metric([status.agent], gauge_value)
            yield gauge
        champion = GaugeMetricFamily(
            "stillhouse_champion_info", "1 for the champion that decides", labels=["agent", "version"]
        )
        problem = GaugeMetricFamily(
            "stillhouse_problem", "1 while this component has a problem", labels=["agent", "side"]
        )
        for status in self._statuses:
            if status.champion is not None:
                champion.add_metric([status.agent, status.champion], 1)
            for component in get_args(Component):
                problem.add_metric([status.agent, component], float(component in status.open_problems))
        yield champion
        yield problem


def _last_flush_timestamp(status: Status) -> float | None:
    return None if status.last_flush is None else status.last_flush.timestamp()


def _of_promise(value_of: Callable[[PromiseStatus], float | None]) -> Callable[[Status], float | None]:
    """A figure of the promise; None for an agent that promises nothing."""
    return lambda status: None if status.promise is None else value_of(status.promise)


_GAUGES: tuple[tuple[str, str, Callable[[Status], float | None]], ...] = (
    ("ready", "1 if there is a champion to decide with", lambda status: float(status.champion is not None)),
    (
        "degraded",
        "1 while any component has a problem, even if decisions work",
        lambda status: float(bool(status.open_problems)),
    ),
    (
        "spool_rows",
        "Rows recorded on this machine that are not in the knowledge base yet",
        lambda status: float(status.spool_rows),
    ),
    (
        "last_flush_timestamp_seconds",
        "When the spools were last flushed into the knowledge base",
        _last_flush_timestamp,
    ),
    (
        "promise_threshold",
        "The student answers at this confidence and above, to keep the promised agreement; 2: it answers nothing",
        _of_promise(lambda promise: 2.0 if promise.threshold is None else promise.threshold),
    ),
    (
        "promise_coverage",
        "Share of audited rows that the student would answer at present",
        _of_promise(lambda promise: promise.coverage),
    ),
    (
        "promise_agreement_bound",
        "Lower bound of the agreement of these answers, at the promised confidence",
        _of_promise(lambda promise: promise.agreement_bound),
    ),
    (
        "promise_rows_lacking",
        "Audited rows without a disagreement that are lacking before the student may answer",
        _of_promise(lambda promise: float(promise.rows_lacking)),
    ),
    (
        "promise_alarms",
        "Alarms of the present champion's promise; fewer rows are answered after each",
        _of_promise(lambda promise: float(promise.alarms)),
    ),
)


def _cumulative_buckets(bounds: Sequence[float], counts: Sequence[float]) -> list[tuple[str, float]]:
    """Prometheus's buckets: the number of values that are at most each bound."""
    total, buckets = 0.0, list[tuple[str, float]]()
    for bound, count in zip([*(f"{bound:g}" for bound in bounds), "+Inf"], counts, strict=False):
        total += count
        buckets.append((bound, total))
    return buckets
