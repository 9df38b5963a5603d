"""The pool of models that are scored on every outcome, and the reckoning that a response is chosen by."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from stillhouse.records.base import Fraction, Record
from stillhouse.records.quality import ScoredUnit
from stillhouse.records.verdicts import Reason, Response

__all__ = [
    "BlockScore",
    "ChampionChoice",
    "FinalFit",
    "PoolEvidence",
    "PoolMember",
    "PoolState",
    "PredictedGain",
    "RealisedGain",
    "Reckoning",
]

MemberRole = Literal["champion", "previous", "challenger", "refused", "final_fit", "never_refreshed"]


class BlockScore(Record):
    """The scores of one pool member on the labelled rows of one block of time.

    The rows of a block are those whose outcomes were known when the block was complete, so every member is scored on
    the same rows, whenever it is scored.
    """

    member: str = Field(description="name@version, such as 'flights@7'")
    start: AwareDatetime
    end: AwareDatetime
    complete: bool = Field(description="whether `outcomes.delay` has passed since its end; else it proves nothing")
    rows: int = Field(ge=1)
    rows_key: str = Field(description="hash of the ids of its rows: members are compared on equal rows only")
    log_loss: float = Field(ge=0.0, description="mean −ln p(outcome), with p clipped at `quality.clip` (nats)")
    half_brier: Fraction = Field(description="mean ½ Σ_k (p_k − y_k)²")
    accuracy: Fraction
    score: float | None = Field(
        default=None,
        description="mean of the user's own score of rows or episodes, oriented so that more is better; None: none",
    )
    probs: tuple[float, ...] = Field(
        default=(), description="with two actions: p of the second action, row by row in the order of time and id"
    )
    labels: tuple[int, ...] = Field(default=(), description="with two actions: the outcomes of these rows")


class PoolMember(Record):
    """A model that is scored: the champion, an earlier one, or one that was made and is not champion."""

    model: str = Field(description="name@version")
    role: MemberRole
    made_at: AwareDatetime = Field(description="time of its refresh: when it entered the pool")
    shaped_until: AwareDatetime = Field(
        description="nothing observed later has shaped it: neither training, nor calibration, nor compression, nor the "
        "fit of its teacher"
    )
    mode: str = Field(description="how its student was made, or `final_fit`")
    promotable: bool = Field(description="whether it may become champion")
    why_not: str = Field(default="", description="why it may not")


class PoolEvidence(Record):
    """The sequential evidence about one member against the reigning champion, on complete blocks new to both."""

    member: str
    champion: str
    measure: str
    since: AwareDatetime = Field(description="start of the first block that counts")
    until: AwareDatetime = Field(description="end of the last block that counts")
    blocks: int = Field(ge=0)
    rows: int = Field(ge=0, description="how many rows, or episodes, both are scored on")
    on: ScoredUnit = Field(
        default="rows", exclude_if=lambda value: value == "rows", description="what has a score: rows or episodes"
    )
    gain: float = Field(description="mean of member − champion in the named measure, oriented so that more is better")
    shrunken_gain: float = Field(description="the same, shrunk towards 0 by its noise and by the choice among members")
    standard_error: float = Field(ge=0.0)
    share: float = Field(gt=0.0, le=1.0, description="share of the error budget of this reign, fixed on entry")
    log_not_worse: float = Field(
        description="log e-value against 'the member is worse than the champion by the margin or more'"
    )
    log_better: float = Field(description="log e-value against 'the member is no better than the champion'")
    log_worse: float = Field(description="log e-value against 'the member is no worse than the champion'")
    log_threshold: float = Field(description="−ln(share of the error budget): reached, the evidence decides")
    newest_gain: float | None = Field(default=None, description="gain on the newest complete block, which may veto")
    newest_error: float | None = Field(default=None, ge=0.0, description="its standard error")
    labels_needed: int | None = Field(
        default=None, ge=0, description="about how many more labels would decide; None: not foreseeable"
    )


class RealisedGain(Record):
    """What a response gained: the new champion against the replaced one, on rows after the switch only."""

    response: Response
    as_of: AwareDatetime = Field(description="time of the switch")
    champion: str
    replaced: str
    predicted: float | None = Field(description="predicted gain per week, in points of the named measure")
    realised: float = Field(description="mean gain per week until the next switch")
    standard_error: float = Field(ge=0.0)
    rows: int = Field(ge=0)
    weeks: float = Field(ge=0.0)
    explored: bool = False


class FinalFit(Record):
    """The certificate of a final fit: the challenger of a refresh, trained on its test window too.

    No row of the refresh can prove it, as it has seen all of them.
    """

    agent: str
    refresh_id: str
    as_of: AwareDatetime
    challenger: str = Field(description="version that it is the final fit of, name@version")
    variant: str = Field(description="name of its compression recipe, which is the challenger's")
    status: Literal["not yet proved"] = Field(
        default="not yet proved", description="what is known of its quality at the refresh; later rows prove it"
    )
    shaped_until: AwareDatetime = Field(description="end of the test window: only rows observed later prove it")
    train_rows: int = Field(ge=1, description="rows that it was trained on, with the new ones")
    new_rows: int = Field(ge=0, description="rows of the test window among them")
    bytes: int = Field(ge=0)
    p95_ms: float | None = Field(default=None, ge=0.0, description="95th percentile of the latency of one row (ms)")
    earlier: int = Field(ge=0, description="earlier final fits that were scored beside their challengers")
    reasons: tuple[Reason, ...] = Field(description="budgets, agreement, and whether earlier final fits gained")
    decides: bool = Field(description="whether it becomes champion instead of the promoted challenger")
    text: str = Field(description="one sentence")


class PoolState(Record):
    """The pool at one moment: members, evidence, and their curves."""

    champion: str
    as_of: AwareDatetime
    reign: int = Field(ge=1, description="number of this champion's reign, from 1")
    reign_began: AwareDatetime
    members: tuple[PoolMember, ...]
    evidence: tuple[PoolEvidence, ...] = ()
    realised: tuple[RealisedGain, ...] = Field(
        default=(), description="what changes of the champion have gained, beside what they were predicted to gain"
    )


class ChampionChoice(Record):
    """Which member of the pool should be champion now, and why."""

    action: Literal["keep", "promote", "undo"] = Field(
        description="undo: back to the member that the champion replaced, which is proven better"
    )
    champion: str = Field(description="the reigning champion")
    member: str = Field(description="who should be champion; with `keep` the reigning one")
    text: str = Field(description="one sentence")
    reasons: tuple[Reason, ...] = Field(default=(), description="of each member, in the order of the pool")


class PredictedGain(Record):
    """What one response is predicted to gain until the next chance to respond, and what it costs."""

    response: Response
    model: str | None = Field(default=None, description="the member of the pool that would become champion")
    gain: float = Field(description="expected gain in points of the named measure, times weeks, until the horizon")
    standard_error: float = Field(ge=0.0)
    price: float = Field(ge=0.0, description="in the same unit")
    weeks: float = Field(default=0.0, ge=0.0, description="until the horizon: the gain is a gain per week times this")
    possible: bool = True
    text: str = Field(description="one sentence: where the prediction comes from, or why it is not possible")

    @property
    def net(self) -> float:
        """Gain minus price."""
        return self.gain - self.price


class Reckoning(Record):
    """Everything that a response was chosen by: the prediction of each response, and their terms."""

    measure: str
    unit: str
    horizon_weeks: float = Field(gt=0.0, description="until the next chance to respond")
    exchange_rate: float = Field(ge=0.0, description="price of a redistillation, in points of the measure for one week")
    decay: float = Field(description="loss of quality per week of age, learned from the pool")
    age_weeks: float = Field(ge=0.0, description="age of the champion's training data")
    excess: float = Field(description="estimated gain per week of a student that is trained now")
    rate: float = Field(ge=0.0, description="gain per week above which a training pays: √(2 · price · decay)")
    terms: dict[str, float] = Field(default_factory=dict, description="the parts of the estimate, by name")
    responses: tuple[PredictedGain, ...]
    chosen: Response
    model: str | None = None
    explored: bool = False
    text: str
