"""Records of a compression search: its candidates, its limits and its Pareto frontier."""

from __future__ import annotations

from pydantic import Field, JsonValue

from stillhouse.records.base import Fraction, Record
from stillhouse.records.quality import Latency

__all__ = ["CompressionCandidate", "Frontier", "LayerSensitivity", "Saturation", "SizeLimits"]


class Saturation(Record):
    """An int8 layer whose 16-bit sums would overflow (saturate) on a processor without VNNI."""

    layer: str
    share: Fraction = Field(description="share of the pairs of products that overflow, on calibration rows")


class CompressionCandidate(Record):
    """A compressed model that a search built and measured."""

    candidate_id: str = Field(description="content hash of the model, the recipe and the rows")
    name: str
    recipe: tuple[dict[str, JsonValue], ...] = Field(description="settings of its compression steps, in order")
    folder: str = Field(default="", description="path of its files; empty if it was refused")
    bytes: int = Field(default=0, ge=0, description="size on disk (bytes)")
    quality: Fraction | None = Field(default=None, description="on the validation rows")
    slices: dict[str, Fraction] = Field(
        default_factory=dict, description="quality on the slices of the validation rows that are limited too, by name"
    )
    difference: Fraction | None = Field(
        default=None, description="mean |p − p of the float32 model| on the validation rows"
    )
    latency: Latency | None = None
    cpu_ms: float | None = Field(default=None, ge=0.0, description="CPU time of one row (ms), a proxy of its energy")
    saturates: tuple[Saturation, ...] = Field(default=(), description="layers that would overflow without VNNI")
    seconds: float = Field(default=0.0, ge=0.0, description="time it took to build (s)")
    refused: str | None = Field(default=None, description="why it cannot be served, with the layer; None: it can")

    def loss(self, reference: CompressionCandidate) -> tuple[float, str]:
        """Its largest loss of quality against ``reference``, and the slice with that loss; "": all validation rows."""
        assert self.quality is not None and reference.quality is not None
        losses = {"": reference.quality - self.quality}
        losses |= {
            name: reference.slices[name] - score for name, score in self.slices.items() if name in reference.slices
        }
        return max((loss, name) for name, loss in losses.items())

    def __str__(self) -> str:
        if self.refused is not None or self.latency is None or self.quality is None:
            return f"{self.name}: refused: {self.refused}"
        return f"{self.name}: {self.bytes:,} bytes, p50 {self.latency.p50_ms:.3g} ms, quality {self.quality:.4f}"


class LayerSensitivity(Record):
    """How much one step on one layer changes the outputs, before any recovery training, and what it saves."""

    step: str = Field(description="method of the step")
    layer: str
    difference: float = Field(ge=0.0, description="mean |p − p before the step| on calibration rows")
    parameters_saved: int
    operations_saved: Fraction = Field(default=0.0, description="share of a row's multiplications and additions")


class SizeLimits(Record):
    """Limits on a deployed candidate; None: no limit."""

    max_bytes: int | None = Field(default=None, ge=1, description="size of its folder (bytes)")
    max_p95_ms: float | None = Field(default=None, gt=0, description="95 % quantile of the latency of one row (ms)")
    max_quality_loss: float = Field(
        default=0.005,
        ge=0,
        le=1,
        description="largest loss of quality against the float32 model, on all validation rows and on each slice",
    )


class Frontier(Record):
    """All candidates of a search, and those that no other dominates in quality, bytes and latency."""

    reference: CompressionCandidate = Field(description="the float32 model, uncompressed")
    candidates: tuple[CompressionCandidate, ...] = Field(
        description="in the order in which they were built, the reference first"
    )
    best: tuple[str, ...] = Field(description="names of the candidates that no other dominates, smallest first")
    hypervolume: float = Field(ge=0.0, le=1.0, description="share of the unit cube of scores that they dominate")
    chosen: str = Field(description="name of the selected candidate")
    fits: bool = Field(description="whether the selected candidate is within all limits")
    why: str = Field(
        description="reason for the choice, one sentence; if no candidate fits, the limits that would have to change"
    )
    limits: SizeLimits
    sensitivity: tuple[LayerSensitivity, ...] = ()
    stopped: str = Field(description="why the search ended")
    measure: str = Field(default="", description="the measure of quality, in words")
    notes: tuple[str, ...] = Field(default=(), description="remarks on how the model was compressed")

    @property
    def servable(self) -> tuple[CompressionCandidate, ...]:
        """The candidates that were not refused."""
        return tuple(candidate for candidate in self.candidates if candidate.refused is None)

    def named(self, name: str) -> CompressionCandidate:
        """The candidate with this name.

        :raises StopIteration: if there is none.
        """
        return next(candidate for candidate in self.candidates if candidate.name == name)
