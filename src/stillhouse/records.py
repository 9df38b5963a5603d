"""The frozen records that travel between rooms: numbers, reasons and addresses, never a model or a frame.

All are pydantic models, so that each one becomes JSON and comes back equal:
``Verdict.model_validate_json(verdict.model_dump_json()) == verdict``.
Times are timezone-aware UTC; windows are half-open, ``[start, end)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

__all__ = [
    "REFRESH_MODES",
    "Baseline",
    "Candidate",
    "Certificate",
    "CheckFailure",
    "ClusterScores",
    "ColumnDrift",
    "Comparison",
    "Contradiction",
    "Contradictions",
    "Cost",
    "Counted",
    "DataReport",
    "Disagreement",
    "DriftReport",
    "EvidenceStep",
    "Examination",
    "Frontier",
    "Latency",
    "LayerSensitivity",
    "Limits",
    "LossBaseline",
    "Mode",
    "ModelRef",
    "Outcome",
    "Process",
    "Proof",
    "Quality",
    "Questions",
    "Reason",
    "Record",
    "Refresh",
    "Response",
    "Saturation",
    "Scorecard",
    "Screened",
    "Screens",
    "SliceDrift",
    "SliceWeights",
    "Spending",
    "StudentRef",
    "TeacherRef",
    "Verdict",
    "WeightChange",
    "Weights",
    "Window",
    "drift_report",
    "evidence_steps",
    "short_id",
]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Record(BaseModel):
    """Base of all records: frozen, unknown fields refused, numbers finite (JSON has no NaN to come back from)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Window(Record):
    """A stretch of an agent's life, ``[start, end)``, and the table versions it was read at.

    One with a sample stands for so many of its observations, drawn uniformly: those that are not in quarantine and
    whose keyed hash of ``(seed, observation_id)`` is smallest. Its outcomes are those of the same rows.
    """

    name: str
    start: AwareDatetime
    end: AwareDatetime
    versions: dict[str, int] = Field(default_factory=dict, description="Delta table version by table")
    sample: int | None = Field(default=None, ge=1, description="observations at most; None: all of them")
    seed: int | None = Field(default=None, ge=0, lt=2**64, description="of the sample")
    chosen: str | None = Field(default=None, description="how the bounds came about, where not by a length of time")

    @model_validator(mode="after")
    def _sampled_by_a_seed(self) -> Window:
        if (self.sample is None) != (self.seed is None):
            raise ValueError("a sample needs a seed, and a seed is that of a sample: give both or neither")
        return self

    @classmethod
    def ending(cls, name: str, end: datetime, length: timedelta) -> Window:
        """The window of ``length`` that ends at ``end``."""
        return cls(name=name, start=end - length, end=end)

    def __str__(self) -> str:
        text = f"{self.name} [{self.start:%Y-%m-%d %H:%M}, {self.end:%Y-%m-%d %H:%M})"
        text += f", {self.chosen}" if self.chosen else ""
        return text if self.sample is None else f"{text}, a sample of at most {self.sample:,} rows (seed {self.seed})"


class Reason(Record):
    """One measure beside its threshold, and what it means in a sentence."""

    measure: str
    value: float | None = None
    threshold: float | None = None
    crossed: bool
    text: str


# --------------------------------------------------------------------------- data checks


class CheckFailure(Record):
    """One expectation of the data contract that did not hold."""

    expectation: str
    column: str | None
    rows: int = Field(ge=0, description="rows that break it; 0 for an expectation on the window as a whole")
    text: str
    fatal: bool = Field(description="true: the window is refused; false: its rows are quarantined")


class DataReport(Record):
    """What the data contract said about one window."""

    window: Window
    rows: int = Field(ge=0)
    quarantined: int = Field(ge=0)
    failures: tuple[CheckFailure, ...] = ()
    seconds: float = Field(ge=0.0)
    docs: str | None = Field(default=None, description="Data Docs page of this check")
    skipped_because: str | None = Field(
        default=None, min_length=1, description="why the contract was not asked; null: it was"
    )

    @classmethod
    def skipped(cls, window: Window, rows: int, reason: str) -> DataReport:
        """The report of a window whose contract nobody asked; the verdict that rests on it records the reason."""
        return cls(window=window, rows=rows, quarantined=0, seconds=0.0, skipped_because=reason.strip())

    @property
    def broken(self) -> bool:
        """Whether the window as a whole must not be used."""
        return any(failure.fatal for failure in self.failures)


# --------------------------------------------------------------------------- drift


class ColumnDrift(Record):
    """How far one column moved between the reference and the current window."""

    column: str
    kind: Literal["number", "category"]
    psi: float = Field(ge=0.0, description="population stability index, bins from the reference's quantiles")
    ks: float | None = Field(default=None, ge=0.0, le=1.0, description="Kolmogorov–Smirnov distance")
    missing_reference: Fraction
    missing_current: Fraction
    wasserstein: float | None = Field(
        default=None, ge=0.0, description="Wasserstein-1 distance of a number's values, in the column's unit"
    )
    effect: float = Field(
        default=0.0,
        ge=0.0,
        description="effect size: numbers: Wasserstein-1 in standard deviations of the reference; "
        "categories: total variation, 0…1",
    )
    unseen: tuple[str, ...] = Field(default=(), description="categories that the reference does not have")
    vanished: tuple[str, ...] = Field(default=(), description="categories that only the reference has")
    limit: float | None = Field(
        default=None,
        ge=0.0,
        description="largest PSI that is usual on the agent's own history, widened to hold for all columns at once",
    )

    @property
    def unusual(self) -> bool:
        """Whether the PSI lies beyond what the agent's own history showed; without a calibration, never."""
        return self.limit is not None and self.psi > self.limit


class Screens(Record):
    """What distances are usual: each earlier stretch of the reference against the rest of it."""

    block: timedelta = Field(description="length of a stretch")
    blocks: int = Field(ge=0)
    columns: dict[str, tuple[float, ...]] = Field(description="PSI of each stretch, ascending, by column")
    joint: tuple[float, ...] = Field(description="joint statistic of each stretch, ascending")


class Screened(Record):
    """A current window held against :class:`Screens`."""

    blocks: int = Field(ge=0, description="stretches of history that it was calibrated on")
    beyond: tuple[str, ...] = Field(description="columns beyond their limit, farthest first")
    statistic: float = Field(description="joint statistic of the window")
    limit: float = Field(description="largest joint statistic that is usual")
    p_value: float = Field(gt=0, le=1, description="conformal: share of stretches at least as unusual, itself included")
    moved: bool = Field(description="whether the inputs or outputs as a whole lie beyond what is usual")


class SliceDrift(Record):
    """One slice of the observations: did it grow, and do teacher and student part there?"""

    slice: str = Field(description="'column=value', or 'column in (low, high]'")
    share_reference: Fraction
    share_current: Fraction
    rows: int = Field(ge=0, description="audited rows in it")
    disagreement: float | None = Field(default=None, ge=0.0, description="weighted mean over its audited rows")
    excess: float = Field(
        description="its part in the rise of the mean disagreement, over a column's slices; 0 for too few audited rows"
    )


# --------------------------------------------------------------------------- evidence

Process = Literal["disagreement", "student_outcomes", "teacher_outcomes"]


class LossBaseline(Record):
    """What a loss in 0…1 was while the champion was known to be good, and how it swings by itself."""

    mean: float = Field(ge=0.0)
    standard_error: float = Field(ge=0.0, description="of the mean, rows of one cluster counted as one")
    rows: int = Field(ge=0)
    clusters: int = Field(ge=0)
    usual: float = Field(ge=0.0, description="mean of the worse stretches of history (their 0.9 quantile)")
    autocorrelation: float | None = Field(
        default=None,
        ge=0.0,
        le=0.5,
        description="of the means of neighbouring steps: upper 95 % bound; None: history cannot tell",
    )
    step_deviation: float | None = Field(
        default=None,
        ge=0.0,
        description="standard deviation of the means of steps, beyond that of their units: upper 95 % bound; None: "
        "history cannot tell",
    )


class EvidenceStep(Record):
    """One step of an evidence process, and all that the next step needs: the state is the last step."""

    process: Process
    champion: str
    since: AwareDatetime = Field(description="when this champion's evidence began")
    start: AwareDatetime
    end: AwareDatetime
    looks: int = Field(ge=0, description="steps with evidence since then, this one included")
    rows: int = Field(ge=0, description="distinct rows counted since then")
    step_rows: int = Field(ge=0, description="distinct rows counted in this step")
    units: int = Field(ge=0, description="bets of this step")
    mean: float | None = Field(default=None, ge=0.0, description="mean of this step's units; None without any")
    null_mean: float = Field(gt=0.0, description="mean loss that is still no harm")
    log_bets: tuple[float, ...] = Field(description="natural logarithm of the Shiryaev–Roberts statistic of each bet")
    log_evidence: float = Field(description="that of their mixture")
    log_threshold: float = Field(
        description="natural logarithm of what this process alone must reach: the average run length promised, divided "
        "by its share"
    )
    share: float | None = Field(
        default=None, gt=0.0, le=1.0, description="of the agent's budget; None: a budget of its own, as steps once had"
    )
    autocorrelation: float = Field(
        default=0.0, ge=0.0, le=0.5, description="of the means of neighbouring steps, that is no harm"
    )
    step_deviation: float | None = Field(
        default=0.0,
        ge=0.0,
        description="standard deviation of what the units of a step may share; None: any, so that a step is one bet",
    )
    excess: float = Field(
        default=0.0,
        ge=0.0,
        description="by how much the next step's mean may exceed `null_mean`, after the steps so far",
    )

    @property
    def alarm(self) -> bool:
        """Whether this process alone has reached its threshold."""
        return self.log_evidence >= self.log_threshold


class Counted(Record):
    """A step of evidence with the rows that it counted: parallel tuples, one entry per draw or outcome."""

    step: EvidenceStep
    observation_ids: tuple[str, ...] = ()
    units: tuple[int, ...] = Field(default=(), description="which of the step's bets the row belongs to")
    probabilities: tuple[float, ...] = Field(default=(), description="with which one draw of its stratum took the row")
    weights: tuple[float, ...] = Field(default=(), description="of the row's loss in the mean of its unit")
    losses: tuple[float, ...] = ()


class Cost(Record):
    """What watching has cost."""

    teacher_calls: int = Field(ge=0, description="rows that the teacher was asked about for this verdict")
    teacher_calls_since: int = Field(ge=0, description="the same since the champion's evidence began")
    seconds: float = Field(ge=0.0, description="wall time of the measurement")


class Spending(Record):
    """What asking a teacher has cost. Two of them add up."""

    calls: int = Field(default=0, ge=0, description="requests to an endpoint; rows put to a teacher in this process")
    rows: int = Field(default=0, ge=0, description="rows that it was asked about")
    input_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(default=0, ge=0)
    seconds: float = Field(default=0.0, ge=0.0, description="wall time")
    money: float = Field(default=0.0, ge=0.0, description="in the unit of the prices in the agent file")

    def __add__(self, other: Spending) -> Spending:
        return Spending(**{name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields})

    def __str__(self) -> str:
        text = f"{self.calls:,} calls about {self.rows:,} rows in {self.seconds:,.1f} s"
        if self.input_tokens or self.output_tokens:
            text += f", {self.input_tokens:,} tokens in and {self.output_tokens:,} out"
        return f"{text}, cost {self.money:,.4f}" if self.money else text


class Questions(Record):
    """About which training rows the teachers were to be asked."""

    rows: int = Field(ge=0, description="training rows, with and without an outcome")
    without_outcome: int = Field(ge=0, description="of these, rows whose outcome is not known")
    known: int = Field(ge=0, description="about which the teacher had spoken before")
    asked: int = Field(ge=0, description="selected to be asked about")
    answered: int = Field(ge=0, description="selected and now known")
    limited: bool = Field(description="whether the budget allowed fewer than the agent file wants")

    @property
    def skipped(self) -> int:
        """Rows that were neither known nor selected."""
        return self.rows - self.known - self.asked

    def __str__(self) -> str:
        text = (
            f"{self.rows:,} training rows: {self.known:,} known before, {self.asked:,} asked about "
            f"({self.answered:,} answered), {self.skipped:,} skipped"
        )
        return text + (", as the budget ended" if self.limited else "")


class Disagreement(Record):
    """Teacher and student on the same sample of observations."""

    rows: int = Field(ge=0)
    rate: Fraction = Field(description="share of rows on which the chosen actions differ")
    total_variation: Fraction = Field(description="mean of ½ Σ|p_teacher − p_student|")


class Quality(Record):
    """How good probabilities were, against outcomes."""

    rows: int = Field(ge=0)
    auc: float | None = Field(
        default=None, ge=0.0, le=1.0, description="area under the ROC curve; macro one-vs-rest for K > 2"
    )
    log_loss: float = Field(ge=0.0, description="mean −log p(outcome) (nats)")
    brier: float = Field(ge=0.0, le=2.0, description="mean Σ_k (p_k − y_k)²")
    accuracy: Fraction
    calibration_error: Fraction = Field(description="expected calibration error, 15 equal-mass bins")
    actions: int = Field(default=2, ge=2, description="how many there were to choose from")

    @property
    def measure(self) -> Literal["auc", "accuracy"]:
        """What models are compared by: the AUC for two actions, the accuracy for more, or where there is no AUC."""
        return "auc" if self.actions == 2 and self.auc is not None else "accuracy"

    @property
    def score(self) -> float:
        """The value of :attr:`measure`, 0…1."""
        return self.accuracy if self.auc is None or self.measure == "accuracy" else self.auc


class DriftReport(Record):
    """One drift measurement: the reference (what the champion was trained on) against the current window."""

    agent: str
    champion: str = Field(description="name@version of the model that was watched")
    reference: Window
    current: Window
    reference_rows: int = Field(ge=0)
    current_rows: int = Field(ge=0)
    columns: tuple[ColumnDrift, ...]
    outputs: tuple[ColumnDrift, ...] = Field(
        default=(), description="the student's output as columns: probabilities, margin, action"
    )
    screened: Screened | None = Field(default=None, description="columns and outputs against the agent's own history")
    slices: tuple[SliceDrift, ...] = Field(default=(), description="those that explain the disagreement, first first")
    disagreement: Disagreement | None = None
    disagreement_reference: Disagreement | None = Field(
        default=None, description="the same on the window that the champion was proved on"
    )
    quality: Quality | None = Field(default=None, description="the champion's decisions against known outcomes")
    quality_reference: Quality | None = None
    seconds: float = Field(ge=0.0)

    def worst(self, count: int = 5) -> tuple[ColumnDrift, ...]:
        """The ``count`` columns with the largest PSI, largest first."""
        return tuple(sorted(self.columns, key=lambda column: -column.psi)[:count])


# --------------------------------------------------------------------------- several teachers


class SliceWeights(Record):
    """What was learned about the teachers' weights in one slice, or everywhere."""

    outcomes: int = Field(ge=0, description="outcomes counted in it")
    stretches: int = Field(ge=0, description="in so many stretches of `promotion.cluster`, each one piece of evidence")
    own: Fraction = Field(description="how far its own weights count against those of everywhere; 1 for everywhere")
    posterior: tuple[float, ...] = Field(description="over the constant mixtures of the teachers")


class Weights(Record):
    """The teachers' weights and all that the next outcome needs (:mod:`stillhouse.teachers.weighing`)."""

    by: Literal["file", "agreement", "outcomes"] = Field(
        description="what they rest on: the agent file alone; agreement, which is weaker; outcomes"
    )
    as_of: AwareDatetime
    teachers: tuple[str, ...] = Field(description="each has one weight: a teacher, or an ensemble with fixed weights")
    start: tuple[float, ...] = Field(description="their shares before the first outcome")
    columns: tuple[str, ...] = Field(
        default=(), description="slice columns, whose values may have weights of their own"
    )
    column_shares: tuple[float, ...] = Field(description="how far everywhere counts, then each slice column")
    everywhere: SliceWeights
    slices: dict[str, SliceWeights] = Field(default_factory=dict, description="by 'column=value'")
    losses: dict[str, float] = Field(
        description="sum over stretches of the mean −ln p(outcome) (nats): each teacher, 'start', as weighted then ('')"
    )


class WeightChange(Record):
    """One teacher's share moved."""

    teacher: str
    slice: str = Field(description="'column=value'; '': everywhere")
    before: Fraction
    after: Fraction
    by: Literal["file", "agreement", "outcomes"]
    as_of: AwareDatetime
    version: str = Field(description="of all teachers together, before their weights")
    job: str = Field(description="refresh id, or 'watch'")
    reason: str


class Contradiction(Record):
    """Two teachers on the rows of one slice that both have spoken about."""

    first: str
    second: str
    slice: str = Field(description="'column=value'; '': everywhere")
    rows: int = Field(ge=0)
    contradicting: int = Field(ge=0, description="rows with different actions, or a total variation above ½")
    share: Fraction
    low: Fraction = Field(description="95 % interval of the share, rows of one cluster counted as one")
    high: Fraction
    known: int = Field(ge=0, description="contradicting rows whose outcome is known")
    first_right: int = Field(ge=0, description="of those, where only the first chose the outcome")
    second_right: int = Field(ge=0)
    better: str | None = Field(description="who was right more often, beyond chance (95 %); None: cannot be told")


class Contradictions(Record):
    """Where teachers contradict each other, most first."""

    window: Window
    found: tuple[Contradiction, ...] = ()


# --------------------------------------------------------------------------- models


class ModelRef(Record):
    """A model where MLflow keeps it."""

    name: str = Field(description="registered or logged model name")
    version: str | None = Field(default=None, description="registry version; None while only logged")
    uri: str
    run_id: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.version}" if self.version else self.name


class TeacherRef(Record):
    """The agent's teachers as one: where their files lie and which outcomes they have seen."""

    version: str = Field(description="content hash of all that decides what they say")
    folder: str
    fitted: Window | None = Field(description="whose outcomes they have seen; None: none of them can be fitted")
    features: str | None = Field(default=None, description="version of the one whose features are kept; None: none")
    bytes: int = Field(ge=0)
    model: ModelRef | None = None


class StudentRef(Record):
    """A distilled student where a refresh keeps it: weights, its input columns, and how the training went."""

    folder: str
    bytes: int = Field(ge=0)
    rows: int = Field(ge=0, description="training rows")
    history: tuple[dict[str, float], ...] = Field(description="mean losses of each epoch")


class Latency(Record):
    """Time for one call with one row, one thread, measured on the machine that serves."""

    p50_ms: float = Field(ge=0.0)
    p95_ms: float = Field(ge=0.0)
    calls: int = Field(ge=1)


class Scorecard(Record):
    """All figures of one model on named windows."""

    model: str = Field(description="teacher, student, or a variant's name")
    role: Literal["teacher", "student", "variant", "champion"]
    quality: dict[str, Quality] = Field(description="by window name")
    slices: dict[str, Quality] = Field(default_factory=dict, description="by 'column=value', on the test window")
    agreement: float | None = Field(
        default=None, ge=0.0, le=1.0, description="1 − mean total variation to the teacher, test window"
    )
    bytes: int = Field(ge=0, description="on disk")
    latency: Latency | None = None
    cpu: str = Field(default="", description="processor on which the latency was measured")

    @property
    def test(self) -> Quality:
        """Quality on the window ``test``."""
        return self.quality["test"]


# --------------------------------------------------------------------------- compression


class Saturation(Record):
    """An integer layer whose 16-bit sums would overflow on a processor without VNNI."""

    layer: str
    share: Fraction = Field(description="of the pairs of products on calibration rows")


class Candidate(Record):
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

    def loss(self, reference: Candidate) -> tuple[float, str]:
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


class Limits(Record):
    """What a device allows a candidate; None: anything."""

    max_bytes: int | None = Field(default=None, ge=1, description="of the artifact's folder (bytes)")
    max_p95_ms: float | None = Field(default=None, gt=0, description="of one row's decision (ms)")
    max_quality_loss: float = Field(
        default=0.005, ge=0, le=1, description="below the float32 model's quality, on all judged rows and on each slice"
    )


class Frontier(Record):
    """All that a search made, and which of it nothing else beats in quality, bytes and latency at once."""

    reference: Candidate = Field(description="the float32 model, uncompressed")
    candidates: tuple[Candidate, ...] = Field(description="in the order they were made, the reference first")
    best: tuple[str, ...] = Field(description="names of those not dominated, smallest first")
    hypervolume: float = Field(ge=0.0, le=1.0, description="share of the box below the reference that they dominate")
    chosen: str = Field(description="name of the one put forward")
    fits: bool = Field(description="whether it keeps within all limits")
    why: str = Field(description="one sentence; where nothing fits, what would have to give")
    limits: Limits
    sensitivity: tuple[LayerSensitivity, ...] = ()
    stopped: str = Field(description="why the search ended")
    measure: str = Field(default="", description="what quality is, in words")
    notes: tuple[str, ...] = Field(default=(), description="what else to know about how the model was compressed")

    @property
    def able(self) -> tuple[Candidate, ...]:
        """Those that can serve."""
        return tuple(candidate for candidate in self.candidates if candidate.refused is None)

    def named(self, name: str) -> Candidate:
        """The candidate of that name."""
        return next(candidate for candidate in self.candidates if candidate.name == name)


# --------------------------------------------------------------------------- verdicts

Response = Literal["hold", "recalibrate", "reuse", "update", "redistil_warm", "redistil", "renew"]

Mode = Literal["recalibrate", "update", "redistil_warm", "redistil"]
"""How a refresh makes its student: the champion's is kept, and its ranges and its confidence are estimated anew; the
champion's takes in what is new; a training that begins at the champion's weights; a training from the beginning."""

REFRESH_MODES: Mapping[Response, Mode | None] = {
    "hold": None,
    "recalibrate": "recalibrate",
    "reuse": "redistil",
    "update": "update",
    "redistil_warm": "redistil_warm",
    "redistil": "redistil",
    "renew": "redistil",
}
"""How the refresh that a response asks for makes its student; None: the response asks for no refresh."""

Outcome = Literal[
    # watch
    "no_drift",
    "benign_shift",
    "drift",
    "harmful_drift",
    "teacher_failing",
    "cooling_down",
    "not_enough_evidence",
    "data_broken",
    # gate, promotion
    "admitted",
    "promoted",
    "refused",
    "awaiting_approval",
    "rolled_back",
]


class ClusterScores(Record):
    """How far each cluster of rows moves an estimate, and how far one more could: what a bound is made of."""

    scores: tuple[tuple[float, int], ...] = Field(
        description="influence of a cluster on the estimate, in its unit, and how many clusters have it; they sum to 0"
    )
    worst: float = Field(gt=0, description="by how much one more cluster could change the estimate")
    clusters: int = Field(ge=1)
    effective: float = Field(ge=1, description="clusters of equal size that they are worth (Kish 1965)")


class Comparison(Record):
    """Challenger minus champion on the same rows: the evidence of a gate, complete enough to judge again."""

    window: str = Field(
        description="window name, 'column=value' of a slice of the test window, or 'anchor': the test window, and an "
        "earlier champion"
    )
    rows: int = Field(ge=0)
    measure: Literal["auc", "accuracy"] = Field(description="AUC for two actions, accuracy for more")
    challenger: float
    champion: float
    difference: float = Field(description="challenger − champion")
    standard_error: float = Field(ge=0.0, description="of the paired difference")
    margin: float = Field(ge=0.0, description="how much worse the challenger may be")
    rule: int = Field(default=1, ge=1, description="version of the rule that bounds the difference; 1: normal")
    lost: int | None = Field(default=None, ge=0, description="rows on which the champion alone is right (accuracy)")
    gained: int | None = Field(default=None, ge=0, description="rows on which the challenger alone is right (accuracy)")
    rarer: int | None = Field(default=None, ge=0, description="rows of the rarer outcome (AUC)")
    evidence: ClusterScores | None = Field(default=None, description="of the difference; None under rule 1")


class Certificate(Record):
    """All that a promotion was decided on. ``evaluate.gate.judge`` on it gives the identical verdict."""

    agent: str
    refresh_id: str
    challenger: Scorecard
    champion: Scorecard | None
    comparisons: tuple[Comparison, ...]
    confidence: float = Field(gt=0.5, lt=1.0, description="one-sided")
    max_bytes: int | None
    max_p95_ms: float | None
    approval: Literal["automatic", "manual"]
    as_of: AwareDatetime
    nothing_fits: str = Field(default="", description="what would have to give, where no variant keeps to the budgets")
    rule: int = Field(
        default=1, ge=1, description="version of the rule that it is judged by; stored, and kept for good"
    )
    contract_skipped: str | None = Field(default=None, description="why the data contract was not asked; None: it was")
    anchor: str | None = Field(
        default=None, description="the champion that losses are added up from, 'flights@3'; None: there was none yet"
    )


class Examination(Record):
    """All that decides whether a teacher may teach. ``evaluate.admission.judge`` on it gives the identical verdict."""

    agent: str
    refresh_id: str
    as_of: AwareDatetime
    teacher: str = Field(description="version of the teacher")
    rows: int = Field(ge=0, description="rows with outcomes that it had not seen and was asked about")
    answered: int = Field(ge=0, description="those with a usable answer")
    unanswered: tuple[str, ...] = Field(default=(), description="the most frequent reasons why others have none")
    constant: bool = Field(description="whether it said the same about all of them")
    comparison: Comparison | None = Field(description="teacher against the base rate; None: too few outcomes of each")
    against_champion: Comparison | None = Field(default=None, description="teacher against the champion, same rows")
    trusted: str | None = Field(default=None, description="version of the teacher that it was compared with instead")
    agreement: float | None = Field(default=None, ge=0.0, le=1.0, description="1 − mean total variation to that one")
    agreement_error: float = Field(default=0.0, ge=0.0, description="standard error of the agreement, by cluster")
    agreement_evidence: ClusterScores | None = Field(default=None, description="of the agreement; None under rule 1")
    confidence: float = Field(gt=0.5, lt=1.0, description="one-sided")
    rule: int = Field(
        default=1, ge=1, description="version of the rule that it is judged by; stored, and kept for good"
    )
    min_answered: Fraction
    min_agreement: Fraction


class Proof(Record):
    """Everything measured about one refresh's models, and which variant is put forward."""

    teacher: Scorecard
    student: Scorecard
    variants: tuple[Scorecard, ...]
    champion: Scorecard | None
    chosen: str = Field(description="name of the variant put forward")
    why: str
    disagreement: Disagreement = Field(description="teacher and chosen variant on the test window")
    certificate: Certificate


class Verdict(Record):
    """A decision of the system, with the numbers and reasons that led to it."""

    verdict_id: str
    kind: Literal["watch", "gate", "promotion"]
    agent: str
    as_of: AwareDatetime
    outcome: Outcome
    response: Response = "hold"
    summary: str
    reasons: tuple[Reason, ...] = ()
    cost: Cost | None = Field(default=None, description="of a watch")
    evidence: dict[str, JsonValue] = Field(default_factory=dict, description="the records judged, as JSON")

    @property
    def refresh_mode(self) -> Mode | None:
        """How the refresh that this verdict asks for makes its student; None: it asks for none."""
        return REFRESH_MODES[self.response]


class Baseline(Record):
    """What a champion was trained and proved on: what every later watch compares with.

    Beside it in the run lies ``profile.arrow``, the profile of the training window and of the champion's output on it
    (:mod:`stillhouse.drift.profile`).
    """

    train: Window
    test: Window
    as_of: AwareDatetime = Field(description="the moment that the refresh spoke for: where its evidence may begin")
    screens: Screens
    losses: dict[Process, LossBaseline] = Field(description="what each evidence process holds for good")
    disagreement: Disagreement = Field(description="with its teacher, on the test window")
    quality: Quality = Field(description="on the test window")
    teacher: ModelRef


class Refresh(Record):
    """One refresh under way: what for, on which windows, where its files and its MLflow run are."""

    refresh_id: str
    agent: str
    as_of: AwareDatetime
    trigger: Literal["bootstrap", "drift", "manual"]
    cause: str = Field(description="verdict id of the drift, or who asked and why")
    train: Window
    test: Window
    teacher: Literal["fit", "keep"]
    mode: Mode = "redistil"
    since: AwareDatetime | None = Field(
        default=None, description="of an update or a recalibration: from when rows are new to the champion"
    )
    folder: str = Field(description="of the files of this refresh, until MLflow has them")
    run_id: str = Field(description="MLflow parent run")
    contract_skipped: str | None = Field(default=None, description="why the data contract was not asked; None: it was")
    verdict: Verdict | None = Field(default=None, description="of an earlier, interrupted or finished run of it")
    finished: bool = False

    @property
    def news(self) -> Window:
        """The part of the training window that is new to the champion; all of it unless this is an update."""
        start = self.train.start if self.since is None else max(self.train.start, min(self.since, self.train.end))
        return self.train.model_copy(update={"name": "new", "start": start})


def short_id(*parts: object) -> str:
    """Twelve hexadecimal characters that depend on nothing but ``parts``: the same work, the same id."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()[:12]


def drift_report(verdict: Verdict) -> DriftReport | None:
    """The drift report that a watch's verdict was decided on; None where nothing could be measured."""
    evidence = verdict.evidence.get("drift")
    return DriftReport.model_validate(evidence) if evidence else None


def evidence_steps(verdict: Verdict) -> tuple[EvidenceStep, ...]:
    """The last step of each evidence process that a watch's verdict was decided on."""
    return tuple(EvidenceStep.model_validate(step) for step in verdict.evidence.get("steps") or ())  # type: ignore[union-attr]
