"""What Prometheus reads: counts of all workers, those that died included.

Each worker counts in plain numbers, which costs a request next to nothing, and writes a snapshot into the server's
folder once a second. Whichever worker is asked adds up its own numbers and everybody's snapshots. A process that dies
leaves its last snapshot, so that no counter ever falls; what it counted since then, at most a second, is lost.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import get_args

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from stillhouse.runtime.agent import Decision, Judged
from stillhouse.runtime.reports import write
from stillhouse.runtime.status import Side, Status

__all__ = ["CONTENT_TYPE_LATEST", "Counts", "Metrics"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_CONFIDENCE = tuple(i / 20 for i in range(1, 21))

_COUNTERS = {
    "requests": ("HTTP requests answered", ("endpoint", "status")),
    "decisions": ("Decisions recorded", ("agent", "decider", "version")),
    "outside_contract": ("Values outside the data contract, decided all the same", ("agent", "column", "rule")),
    "outcomes": ("Outcomes recorded", ("agent",)),
    "teacher_calls": ("Calls of the cascade to teachers", ("agent", "teacher")),
    "teacher_rows": ("Rows that the cascade asked teachers about", ("agent", "teacher")),
    "teacher_cost": ("What that cost, in the unit of the prices in the agent file", ("agent", "teacher")),
}
_HISTOGRAMS = {
    "request_seconds": ("From a request's arrival to its answer", ("endpoint",), _SECONDS),
    "confidence": ("The decider's probability for the action", ("agent", "decider"), _CONFIDENCE),
}

Labels = tuple[str, ...]


class Counts(msgspec.Struct):
    """Numbers by metric and labels."""

    counters: dict[str, dict[Labels, float]] = msgspec.field(default_factory=lambda: {name: {} for name in _COUNTERS})
    histograms: dict[str, dict[Labels, list[float]]] = msgspec.field(
        default_factory=lambda: {name: {} for name in _HISTOGRAMS}
    )
    """The values in each bucket, those above the last one, and the sum of all."""

    def add(self, name: str, labels: Labels, by: float = 1) -> None:
        """Count."""
        found = self.counters[name]
        found[labels] = found.get(labels, 0) + by

    def observe(self, name: str, labels: Labels, values: Iterable[float]) -> None:
        """Put values into a histogram."""
        bounds, found = _HISTOGRAMS[name][2], self.histograms[name]
        kept = found.get(labels)
        if kept is None:
            kept = found[labels] = [0.0] * (len(bounds) + 2)
        for value in values:
            kept[bisect_left(bounds, value)] += 1
            kept[-1] += value

    def include(self, others: Counts) -> None:
        """Add everything that ``others`` counted."""
        for name, by_labels in others.counters.items():
            for labels, value in by_labels.items():
                self.add(name, labels, value)
        for name, series in others.histograms.items():
            for labels, values in series.items():
                mine = self.histograms[name].get(labels, [0.0] * len(values))
                self.histograms[name][labels] = [a + b for a, b in zip(mine, values, strict=True)]


_snapshot = msgspec.msgpack.Decoder(Counts)


class Metrics:
    """One worker's counts, beside those of the others.

    :param folder: of the server's snapshots; None: this process serves alone.
    :param name: of this process, never used before in this folder.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self.folder, self.name = folder, name
        self._file = None if folder is None else folder / f"{name}.counts"
        self.counts = Counts()

    def requested(self, endpoint: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self.counts.add("requests", (endpoint, str(status)))
        self.counts.observe("request_seconds", (endpoint,), (seconds,))

    def decided(self, agent: str, judged: Judged, decisions: Sequence[Decision]) -> None:
        """Decisions were recorded, and with them what the cascade's teachers were asked."""
        by_decider: dict[tuple[str, str], list[float]] = {}
        for each in decisions:
            by_decider.setdefault((each.decider, each.version), []).append(each.confidence)
        for (decider, version), confidences in by_decider.items():
            self.counts.add("decisions", (agent, decider, version), len(confidences))
            self.counts.observe("confidence", (agent, decider), confidences)
        for found in chain.from_iterable(judged.outside.values()):
            self.counts.add("outside_contract", (agent, found.column, found.rule))
        for taught in judged.taught:
            for teacher, spent in taught.spending.items():
                self.counts.add("teacher_calls", (agent, teacher), spent.get("calls", 0))
                self.counts.add("teacher_rows", (agent, teacher), spent.get("rows", 0))
                self.counts.add("teacher_cost", (agent, teacher), spent.get("money", 0))

    def save(self) -> None:
        """Write this worker's snapshot, at once.

        :raises OSError: if the disk refuses; the one of before stays.
        """
        if self._file is not None:
            write(self._file, msgspec.msgpack.encode(self.counts))

    def text(self, statuses: Sequence[Status]) -> bytes:
        """All workers' counts, and how each agent stands, in Prometheus's text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(self.all(), statuses))
        return generate_latest(registry)

    def all(self) -> Counts:
        """What all workers counted."""
        total = Counts()
        total.include(self.counts)
        for file in () if self.folder is None else self.folder.glob("*.counts"):
            if file != self._file:
                with suppress(OSError, msgspec.MsgspecError, ValueError, KeyError):  # swept away, or damaged
                    total.include(_snapshot.decode(file.read_bytes()))
        return total


class _Families(Collector):
    """Counts and statuses as Prometheus's families of metrics."""

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
            for values, kept in sorted(self._counts.histograms[name].items()):
                histogram.add_metric(values, _cumulated(bounds, kept), sum_value=kept[-1])
            yield histogram
        for name, text, value_of in _GAUGES:
            gauge = GaugeMetricFamily(f"stillhouse_{name}", text, labels=["agent"])
            for status in self._statuses:
                if (found := value_of(status)) is not None:
                    gauge.add_metric([status.agent], found)
            yield gauge
        champion = GaugeMetricFamily(
            "stillhouse_champion_info", "1 for the champion that decides", labels=["agent", "version"]
        )
        problem = GaugeMetricFamily("stillhouse_problem", "1 while this side gives trouble", labels=["agent", "side"])
        for status in self._statuses:
            if status.champion is not None:
                champion.add_metric([status.agent, status.champion], 1)
            for side in get_args(Side):
                problem.add_metric([status.agent, side], float(side in status.troubled))
        yield champion
        yield problem


def _last_flush(status: Status) -> float | None:
    return None if status.last_flush is None else status.last_flush.timestamp()


_GAUGES: tuple[tuple[str, str, Callable[[Status], float | None]], ...] = (
    ("ready", "1 where there is a champion to decide with", lambda status: float(status.champion is not None)),
    (
        "degraded",
        "1 while anything gives trouble, though decisions may work",
        lambda status: float(bool(status.troubled)),
    ),
    (
        "spool_rows",
        "Rows recorded on this machine that wait for the knowledge base",
        lambda status: float(status.spool_rows),
    ),
    ("last_flush_timestamp_seconds", "When the spools were last emptied into the knowledge base", _last_flush),
)


def _cumulated(bounds: Sequence[float], kept: Sequence[float]) -> list[tuple[str, float]]:
    """Prometheus's buckets: how many values are at most each bound."""
    total, buckets = 0.0, list[tuple[str, float]]()
    for bound, count in zip([*(f"{bound:g}" for bound in bounds), "+Inf"], kept, strict=False):
        total += count
        buckets.append((bound, total))
    return buckets
