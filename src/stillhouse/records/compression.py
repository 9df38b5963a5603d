"""One compression search: candidates, limits, and the frontier of those that no other candidate dominates."""

from __future__ import annotations

from pydantic import Field, JsonValue

from stillhouse.records.base import Fraction, Record
from stillhouse.records.quality import Latency

__all__ = ["CompressionCandidate", "Frontier", "LayerSensitivity", "Saturation", "SizeLimits"]


class Saturation(Record):
    """An integer layer whose 16-bit sums would overflow on a processor without VNNI."""

    layer: str
    share: Fraction = Field(description="of the pairs of products on calibration rows")


class CompressionCandidate(Record):
    """One recipe, made and measured."""

    candidate_id: str = Field(description="content hash of the model, the recipe and the rows")
    name: str
    recipe: tuple[dict[str, JsonValue], ...] = Field(description="its steps' settings, in order")
    folder: str = Field(default="", description="of the artifact; empty where it was refused")
    bytes: int = Field(default=0, ge=0, description="on disk")
    quality: Fraction | None = Field(default=None, description="on the judged rows")
    slices: dict[str, Fraction] = Field(
        default_factory=dict, description="quality on parts of the judged rows that must hold, too, by their name"
    )
    difference: Fraction | None = Field(default=None, description="mean |p − p of the float32 model| on these rows")
    latency: Latency | None = None
    cpu_ms: float | None = Field(default=None, ge=0.0, description="CPU time of one row, energy's proxy (ms)")
    saturates: tuple[Saturation, ...] = Field(default=(), description="where it would without VNNI")
    seconds: float = Field(default=0.0, ge=0.0, description="that making it took")
    refused: str | None = Field(default=None, description="why it cannot serve, naming the layer")

    def loss(self, reference: CompressionCandidate) -> tuple[float, str]:
        """How much quality it has lost against ``reference``, at most, and on which slice: "" for all judged rows."""
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
    """What one step on one layer alone changes in the answers, before any recovery, and saves."""

    step: str = Field(description="the step's method")
    layer: str
    difference: float = Field(ge=0.0, description="mean |p − p of the form before| on calibration rows")
    parameters_saved: int
    operations_saved: Fraction = Field(default=0.0, description="share of a row's multiplications and additions")


class SizeLimits(Record):
    """What a device allows a candidate; None: anything."""

    max_bytes: int | None = Field(default=None, ge=1, description="of the artifact's folder (bytes)")
    max_p95_ms: float | None = Field(default=None, gt=0, description="of one row's decision (ms)")
    max_quality_loss: float = Field(
        default=0.005, ge=0, le=1, description="below the float32 model's quality, on all judged rows and on each slice"
    )


class Frontier(Record):
    """All that a search made, and which of it nothing else beats in quality, bytes and latency at once."""

    reference: CompressionCandidate = Field(description="the float32 model, uncompressed")
    candidates: tuple[CompressionCandidate, ...] = Field(description="in the order they were made, the reference first")
    best: tuple[str, ...] = Field(description="names of those not dominated, smallest first")
    hypervolume: float = Field(ge=0.0, le=1.0, description="share of the box below the reference that they dominate")
    chosen: str = Field(description="name of the one put forward")
    fits: bool = Field(description="whether it keeps within all limits")
    why: str = Field(description="one sentence; where nothing fits, what would have to give")
    limits: SizeLimits
    sensitivity: tuple[LayerSensitivity, ...] = ()
    stopped: str = Field(description="why the search ended")
    measure: str = Field(default="", description="what quality is, in words")
    notes: tuple[str, ...] = Field(default=(), description="what else to know about how the model was compressed")

    @property
    def able(self) -> tuple[CompressionCandidate, ...]:
        """Those that can serve."""
        return tuple(candidate for candidate in self.candidates if candidate.refused is None)

    def named(self, name: str) -> CompressionCandidate:
        """The candidate of that name."""
        return next(candidate for candidate in self.candidates if candidate.name == name)
