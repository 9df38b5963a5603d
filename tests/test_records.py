"""Records are frozen, refuse what they do not know, and come back from JSON equal."""

from __future__ import annotations

import typing
from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from stillhouse import records
from stillhouse.records import (
    REFRESH_MODES,
    AnswersSource,
    Baseline,
    BlockScore,
    Certificate,
    ChampionChoice,
    CheckFailure,
    ClusterScores,
    ColumnDrift,
    ComparedModel,
    Comparison,
    CompressionCandidate,
    Contradiction,
    ContradictionExample,
    Contradictions,
    Cost,
    DataReport,
    Disagreement,
    DriftCalibration,
    DriftReport,
    EvaluatedModel,
    Evaluation,
    EvidenceRows,
    EvidenceStep,
    Examination,
    FinalFit,
    ForgetReport,
    ForgetRequest,
    Frontier,
    History,
    HistoryEntry,
    IntervalEstimate,
    Latency,
    LayerSensitivity,
    LossBaseline,
    ModelRef,
    ModelSource,
    NamedQuality,
    NewAnswers,
    PendingForget,
    PoolEvidence,
    PoolMember,
    PoolState,
    PredictedGain,
    Promise,
    PromiseState,
    PromiseStatus,
    Proof,
    Quality,
    Questions,
    RealisedGain,
    Reason,
    Reckoning,
    Record,
    Refresh,
    RefreshModeName,
    Response,
    SameRows,
    Saturation,
    Scorecard,
    ScreenResult,
    SizeLimits,
    SliceDrift,
    SliceWeights,
    Sources,
    Spending,
    StudentRef,
    TableDrift,
    TeacherChange,
    TeacherRef,
    TeacherReport,
    TeacherShare,
    TeacherWeights,
    UnsureCluster,
    UntaughtAnswer,
    Verdict,
    Verification,
    WeightChange,
    Window,
    WindowSource,
    drift_report,
    evidence_steps,
    short_id,
    words_for,
)

NOW = datetime(2013, 6, 1, 12, 30, 0, 123456, tzinfo=UTC)
WINDOW = Window(name="train", start=NOW - timedelta(days=7), end=NOW, versions={"observations": 3})
REASON = Reason(measure="psi:temp", value=0.1 + 0.2, threshold=0.25, failed=True, text="temp moved")
FAILURE = CheckFailure(expectation="expect_x", column=None, rows=3, text="3 rows", fatal=True)
DATA = DataReport(window=WINDOW, rows=100, quarantined=3, failures=(FAILURE,), seconds=0.1)
COLUMN = ColumnDrift(
    column="origin", kind="category", psi=1 / 3, ks=None, missing_reference=0, missing_current=0.5, unseen=("LGA",)
)
DISAGREEMENT = Disagreement(rows=500, rate=0.1, total_variation=0.07)
QUALITY = Quality(rows=900, auc=2 / 3, log_loss=0.5, brier=0.3, accuracy=0.8, calibration_error=0.02)
SCREENED = ScreenResult(time_blocks=20, beyond=("origin",), statistic=1.5, limit=1.2, p_value=1 / 21, moved=True)
SLICE = SliceDrift(slice="origin=LGA", share_reference=0.0, share_current=0.3, rows=40, disagreement=0.2, excess=0.05)
SCREENS = DriftCalibration(
    block_length=timedelta(days=7), time_blocks=2, columns={"origin": (0.1, 1 / 3)}, joint=(0.9, 1.2)
)
LOSS = LossBaseline(mean=0.1, standard_error=0.01, rows=900, clusters=60, usual=0.12)
STEP = EvidenceStep(
    process="disagreement",
    champion="toy@3",
    since=NOW - timedelta(days=1),
    start=NOW - timedelta(hours=1),
    end=NOW,
    looks=3,
    rows=150,
    step_rows=50,
    clusters=12,
    mean=None,
    null_mean=0.12,
    log_bets=(-708.0, 2 / 3),
    log_evidence=0.1,
    log_threshold=7.7,
)
COUNTED = EvidenceRows(
    step=STEP, observation_ids=("a",), cluster_ids=(0,), probabilities=(1 / 3,), sampling_weights=(3.0,), losses=(0.1,)
)
COST = Cost(teacher_calls=50, teacher_calls_since=150, seconds=0.2)
DRIFT = DriftReport(
    agent="toy",
    champion="toy@3",
    reference=WINDOW,
    current=WINDOW,
    reference_rows=5,
    current_rows=6,
    columns=(COLUMN,),
    outputs=(COLUMN,),
    screened=SCREENED,
    slices=(SLICE,),
    disagreement=DISAGREEMENT,
    quality=QUALITY,
    seconds=0.01,
)
MODEL = ModelRef(name="toy", version="3", uri="models:/toy/3", run_id="abc")
TEACHER = TeacherRef(version="0123456789ab", folder="/t", fitted=WINDOW, bytes=7, model=MODEL)
STUDENT = StudentRef(folder="/s", bytes=9, rows=100, history=({"knowledge_loss": 0.1, "outcome_loss": 0.7},))
INTERVAL = IntervalEstimate(value=2 / 3, low=0.5, high=0.8)
EVALUATED = EvaluatedModel(
    role="previous", name="toy@2", rows=90, quality=INTERVAL, accuracy=0.7, difference=IntervalEstimate(value=-0.1)
)
EVALUATION = Evaluation(
    agent="toy",
    files=("rows.csv",),
    measure="auc",
    better="higher",
    confidence=0.95,
    rows_read=100,
    unusable=1,
    without_outcome=2,
    duplicates=3,
    trained_on=4,
    rows=90,
    models=(EVALUATED,),
    problems=("rows.csv:2: a: 'hot' is no number",),
    notes=("there is no previous champion",),
)
LATENCY = Latency(p50_ms=0.04, p95_ms=0.09, calls=300)
CARD = Scorecard(
    model="fp32",
    role="variant",
    quality={"test": QUALITY},
    slices={"origin=São Paulo": QUALITY},
    agreement=0.9,
    bytes=1234,
    latency=LATENCY,
    cpu="Zen",
)
SCORES = ClusterScores(scores=((-0.001, 3), (0.003, 1)), worst=0.01, clusters=4, effective=3.5)
COMPARISON = Comparison(
    window="test",
    rows=900,
    measure="auc",
    challenger=0.7,
    champion=0.71,
    difference=-0.01,
    standard_error=0.002,
    margin=0.005,
    rule=2,
    rarer=200,
    evidence=SCORES,
)
CERTIFICATE = Certificate(
    agent="toy",
    refresh_id="r",
    challenger=CARD,
    champion=CARD,
    comparisons=(COMPARISON,),
    confidence=0.95,
    max_bytes=2000,
    max_p95_ms=0.5,
    approval="manual",
    as_of=NOW,
)
PROOF = Proof(
    teacher=CARD,
    student=CARD,
    variants=(CARD,),
    champion=None,
    chosen="fp32",
    why="smallest",
    disagreement=DISAGREEMENT,
    certificate=CERTIFICATE,
)
VERDICT = Verdict(
    verdict_id="v",
    kind="watch",
    agent="toy",
    as_of=NOW,
    result="drift",
    response="redistil",
    summary="it moved",
    reasons=(REASON,),
    cost=COST,
    evidence={"drift": DRIFT.model_dump(mode="json")},
)
BASELINE = Baseline(
    as_of=NOW,
    train=WINDOW,
    test=WINDOW,
    screens=SCREENS,
    losses={"disagreement": LOSS},
    disagreement=DISAGREEMENT,
    quality=QUALITY,
    teacher=MODEL,
)
REFRESH = Refresh(
    refresh_id="r",
    agent="toy",
    as_of=NOW,
    trigger="drift",
    cause="v",
    train=WINDOW,
    test=WINDOW,
    teacher="fit",
    folder="/f",
    run_id="abc",
    verdict=VERDICT,
)
COMPARED = ComparedModel(role="champion", model="toy@1", quality=2 / 3)
SAME_ROWS = SameRows(window=WINDOW, rows=900, measure="auc", models=(COMPARED,))
BLOCK_SCORE = BlockScore(
    member="toy@2",
    start=NOW,
    end=NOW + timedelta(days=1),
    complete=True,
    rows=2,
    rows_key="0123456789abcdef",
    log_loss=0.3,
    half_brier=0.1,
    accuracy=0.5,
    probs=(0.1, 0.7),
    labels=(0, 1),
)
POOL_MEMBER = PoolMember(
    model="toy@2", role="challenger", made_at=NOW, shaped_until=NOW, mode="redistil", promotable=True
)
POOL_EVIDENCE = PoolEvidence(
    member="toy@2",
    champion="toy@1",
    measure="log_loss",
    since=NOW,
    until=NOW + timedelta(days=9),
    blocks=9,
    rows=4_500,
    gain=0.01,
    shrunken_gain=0.004,
    standard_error=0.005,
    share=0.3,
    log_not_worse=2.5,
    log_better=0.5,
    log_worse=-2.0,
    log_threshold=5.8,
)
POOL_STATE = PoolState(
    champion="toy@1", as_of=NOW, reign=1, reign_began=NOW, members=(POOL_MEMBER,), evidence=(POOL_EVIDENCE,)
)
FINAL_FIT = FinalFit(
    agent="toy",
    refresh_id="r1",
    as_of=NOW,
    challenger="toy@2",
    variant="fp32",
    shaped_until=NOW,
    train_rows=900,
    new_rows=100,
    bytes=2_000,
    earlier=0,
    reasons=(),
    decides=False,
    text="not yet proved",
)
CHAMPION_CHOICE = ChampionChoice(action="keep", champion="toy@1", member="toy@1", text="toy@1 stays champion")
PREDICTED_GAIN = PredictedGain(response="redistil", model=None, gain=0.02, standard_error=0.01, price=0.005, text="new")
REALISED_GAIN = RealisedGain(
    response="redistil",
    as_of=NOW,
    champion="toy@2",
    replaced="toy@1",
    predicted=0.02,
    realised=0.015,
    standard_error=0.004,
    rows=900,
    weeks=3.0,
)
RECKONING = Reckoning(
    measure="log_loss",
    unit="nats",
    horizon_weeks=1.0,
    exchange_rate=0.005,
    decay=0.001,
    age_weeks=4.0,
    excess=0.01,
    rate=0.003,
    responses=(PREDICTED_GAIN,),
    chosen="redistil",
    text="a redistillation pays",
)
QUESTIONS = Questions(rows=100, without_outcome=20, known=10, asked=30, answered=29, limited=True)
SPENDING = Spending(calls=7, rows=5, input_tokens=900, output_tokens=40, seconds=1.5, money=0.1 + 0.2)
EXAMINATION = Examination(
    agent="toy",
    refresh_id="r",
    as_of=NOW,
    teacher="0123456789ab",
    rows=500,
    answered=490,
    unanswered=("garbage",),
    constant=False,
    comparison=COMPARISON,
    against_champion=None,
    trusted="ba9876543210",
    agreement=0.9,
    agreement_error=0.01,
    confidence=0.95,
    min_answered=0.8,
    min_agreement=0.8,
)
WEIGHTS_HERE = SliceWeights(outcomes=90, time_blocks=12, own=0.25, posterior=(0.1, 0.2, 0.7))
WEIGHTS = TeacherWeights(
    by="outcomes",
    as_of=NOW,
    teachers=("a", "b"),
    start=(1 / 3, 2 / 3),
    columns=("origin",),
    column_shares=(0.5, 0.5),
    everywhere=WEIGHTS_HERE,
    slices={"origin=São Paulo": WEIGHTS_HERE},
    losses={"": 1.25, "a": 1.5, "b": 2.0, "start": 1.75},
)
WEIGHT_CHANGE = WeightChange(
    teacher="a",
    slice="",
    before=1 / 3,
    after=0.9,
    by="agreement",
    as_of=NOW,
    version="v",
    job="r",
    reason="lost less",
)
CONTRADICTION = Contradiction(
    first="a",
    second="b",
    slice="",
    rows=90,
    contradicting=9,
    share=0.1,
    low=0.05,
    high=0.18,
    known=8,
    first_right=5,
    second_right=2,
    better=None,
)
CONTRADICTION_EXAMPLE = ContradictionExample(
    observation_id="o1", observed_at=NOW, first="stay", second="move", outcome=None, values={"temp": "3"}
)
TEACHER_CHANGE = TeacherChange(teacher="a", before="v", now="w")
CONTRADICTIONS = Contradictions(window=WINDOW, contradictions=(CONTRADICTION,))
SATURATION = Saturation(layer="/student/layers.0/Gemm", share=1e-5)
CANDIDATE = CompressionCandidate(
    candidate_id="c",
    name="units50+int8_static",
    recipe=({"method": "prune_units", "ratios": {"up": 1 / 3}},),
    folder="/c",
    bytes=9,
    quality=2 / 3,
    difference=0.01,
    latency=LATENCY,
    cpu_ms=0.1,
    saturates=(SATURATION,),
)
REFUSED = CompressionCandidate(candidate_id="d", name="heads50", recipe=(), refused="no attention")
SENSITIVITY = LayerSensitivity(step="low_rank", layer="up", difference=0.1, parameters_saved=70)
LIMITS = SizeLimits(max_bytes=100)
FRONTIER = Frontier(
    reference=CANDIDATE,
    candidates=(CANDIDATE, REFUSED),
    best=(CANDIDATE.name,),
    hypervolume=1 / 3,
    chosen=CANDIDATE.name,
    fits=False,
    why="nothing fits",
    limits=LIMITS,
    sensitivity=(SENSITIVITY,),
    stopped="over",
)
WINDOW_SOURCE = WindowSource(window=WINDOW, rows=3, observations="0a", labels="0b")
MODEL_SOURCE = ModelSource(role="challenger", name="fp32", files="0c")
ANSWERS_SOURCE = AnswersSource(teacher="t1", window="test", rows=2, answers="0d")
SOURCES = Sources(
    windows=(WINDOW_SOURCE,), models=(MODEL_SOURCE,), answers=(ANSWERS_SOURCE,), settings={"actions": ["stay", "move"]}
)
VERIFICATION = Verification(
    agent="toy",
    verdict_id="v1",
    as_of=NOW,
    result="promoted",
    identical=False,
    checked=("the verdict",),
    differences=("auc: 0.9 is recorded, 0.8 was computed",),
)
HISTORY_ENTRY = HistoryEntry(
    recorded_at=NOW,
    as_of=NOW,
    verdict_id="v",
    kind="gate",
    result="promoted",
    response="hold",
    summary="no worse",
    reasons=(REASON,),
    gain=REALISED_GAIN,
)
HISTORY = History(agent="toy", entries=(HISTORY_ENTRY,))
TEACHER_SHARE = TeacherShare(teacher="t", kinds=("python",), by_file=0.5, now={"": 0.4, "origin=JFK": 0.2})
TEACHER_REPORT = TeacherReport(agent="toy", teachers=(TEACHER_SHARE,), changes=(WEIGHT_CHANGE,))
PROMISE = Promise(agreement=0.98, confidence=0.95)
PROMISE_STATE = PromiseState(
    promise=PROMISE,
    threshold=2 / 3,
    novelty_limit=0.47,
    rows=(3, 0),
    disagreements=(1, 0),
    doubt=(0.1, 0.0),
    usual=(0.2, 1.0),
    evidence=((-100.0, 0.1), (-100.0, -100.0)),
    unsure_evidence=(-100.0,),
    epoch=1,
    alarm="agreement",
)
PROMISE_STATUS = PromiseStatus(
    promise=PROMISE,
    champion="toy@3",
    threshold=None,
    coverage=None,
    rows=0,
    agreement=None,
    agreement_bound=None,
    blind_rows=0,
    rows_lacking=149,
    audited=7,
    answered=5,
    agreed=5,
    alarms=0,
    why="the teacher answers all rows",
)
UNTAUGHT = UntaughtAnswer(action="São Tomé", rows=7, taught=0, examples=("é",))
UNSURE = UnsureCluster(name="visa_ready", rows=9, action="visa", share=2 / 3, examples=("is my visa ready",))
NEW_ANSWERS = NewAnswers(rows=90, unsure=12, untaught=(UNTAUGHT,), clusters=(UNSURE,), missed_out_of_scope=0.1)
TABLE_DRIFT = TableDrift(reference_rows=9, current_rows=8, columns=(COLUMN,))
FORGET_REQUEST = ForgetRequest(ids=("o1",), where=(("user", "ann"),))
PENDING_FORGET = PendingForget(
    request_id="r1",
    agent="toy",
    requested_at=NOW,
    observation_ids=("o1",),
    content_keys=("ab12",),
    times=(NOW,),
    rows={"observations": 1},
    learned={"toy@1": "trained on 2013-01-01 to 2013-02-01"},
)
FORGET_REPORT = ForgetReport(
    agent="toy", request_id="r1", requested_at=NOW, dry_run=False, observations=1, rows={"observations": 1}, left=("a",)
)
ALL: list[Record] = [
    words_for("teacher answers"),
    FORGET_REQUEST,
    PENDING_FORGET,
    FORGET_REPORT,
    WINDOW_SOURCE,
    MODEL_SOURCE,
    ANSWERS_SOURCE,
    SOURCES,
    VERIFICATION,
    SATURATION,
    CANDIDATE,
    SENSITIVITY,
    LIMITS,
    FRONTIER,
    WEIGHTS_HERE,
    WEIGHTS,
    WEIGHT_CHANGE,
    CONTRADICTION,
    CONTRADICTION_EXAMPLE,
    TEACHER_CHANGE,
    CONTRADICTIONS,
    WINDOW,
    REASON,
    FAILURE,
    DATA,
    COLUMN,
    DISAGREEMENT,
    QUALITY,
    NamedQuality(measure="log_loss", value=1 / 3, unit="nats", high=4.6, better="lower"),
    DRIFT,
    MODEL,
    TEACHER,
    STUDENT,
    HISTORY_ENTRY,
    HISTORY,
    TEACHER_SHARE,
    TEACHER_REPORT,
    TABLE_DRIFT,
    INTERVAL,
    EVALUATED,
    EVALUATION,
    LATENCY,
    CARD,
    SCORES,
    COMPARISON,
    CERTIFICATE,
    PROOF,
    VERDICT,
    BASELINE,
    COMPARED,
    SAME_ROWS,
    REFRESH,
    SCREENED,
    SLICE,
    SCREENS,
    LOSS,
    STEP,
    COUNTED,
    COST,
    SPENDING,
    EXAMINATION,
    QUESTIONS,
    BLOCK_SCORE,
    POOL_MEMBER,
    POOL_EVIDENCE,
    POOL_STATE,
    CHAMPION_CHOICE,
    FINAL_FIT,
    PREDICTED_GAIN,
    REALISED_GAIN,
    RECKONING,
    PROMISE,
    PROMISE_STATE,
    PROMISE_STATUS,
    UNTAUGHT,
    UNSURE,
    NEW_ANSWERS,
]
every_record = pytest.mark.parametrize("record", ALL, ids=lambda record: type(record).__name__)


def test_every_record_is_tried_here() -> None:
    public = [getattr(records, name) for name in records.__all__]
    tried = {r for r in public if isinstance(r, type) and not typing.get_origin(r) and issubclass(r, Record)} - {Record}
    assert {type(record) for record in ALL} == tried


@every_record
def test_json_and_back(record: Record) -> None:
    assert type(record).model_validate_json(record.model_dump_json()) == record
    assert type(record).model_validate(record.model_dump(mode="json")) == record


@every_record
def test_frozen_and_closed(record: Record) -> None:
    field = next(iter(type(record).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(record, field, getattr(record, field))
    with pytest.raises(ValidationError, match="Extra inputs"):
        type(record).model_validate({**record.model_dump(), "surprise": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_say_is_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Comparison.model_validate({**COMPARISON.model_dump(), "difference": value})
    with pytest.raises(ValidationError, match="finite"):
        Quality.model_validate({**QUALITY.model_dump(), "log_loss": value})


@pytest.mark.parametrize("field", ["start", "end"])
def test_a_window_without_time_zone_is_refused(field: str) -> None:
    times = {"start": NOW, "end": NOW} | {field: NOW.replace(tzinfo=None)}
    with pytest.raises(ValidationError, match="timezone"):
        Window(name="w", **times)


def test_the_window_that_ends_somewhere() -> None:
    window = Window.ending("current", NOW, timedelta(days=7))
    assert (window.start, window.end, window.versions) == (NOW - timedelta(days=7), NOW, {})
    assert str(window) == "current [2013-05-25 12:30, 2013-06-01 12:30)"


def test_a_moment_keeps_its_place_in_another_time_zone() -> None:
    local = NOW.astimezone(timezone(timedelta(hours=-5)))
    assert Window(name="w", start=local, end=local) == Window(name="w", start=NOW, end=NOW)
    assert Window.model_validate_json(Window(name="w", start=local, end=local).model_dump_json()).start == NOW


def test_the_worst_columns_come_first() -> None:
    columns = tuple(COLUMN.model_copy(update={"column": c, "psi": p}) for c, p in [("a", 0.1), ("b", 3), ("c", 0.2)])
    report = DRIFT.model_copy(update={"columns": columns})
    assert [column.column for column in report.worst(2)] == ["b", "c"]


def test_the_drift_report_comes_out_of_a_verdict() -> None:
    assert drift_report(VERDICT) == DRIFT
    assert drift_report(VERDICT.model_copy(update={"evidence": {}})) is None


@pytest.mark.parametrize(
    ("record", "field", "stored"),
    [
        (SCREENS, "block_length", "block"),
        (SCREENS, "time_blocks", "blocks"),
        (SCREENED, "time_blocks", "blocks"),
        (STEP, "clusters", "units"),
        (COUNTED, "cluster_ids", "units"),
        (COUNTED, "sampling_weights", "weights"),
        (WEIGHTS_HERE, "time_blocks", "stretches"),
        (CONTRADICTIONS, "contradictions", "found"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_renamed_field_is_stored_under_its_first_name(record: Record, field: str, stored: str) -> None:
    dumped = record.model_dump(mode="json")
    assert stored in dumped and field not in dumped
    value = dumped.pop(stored)
    assert type(record).model_validate({**dumped, field: value}) == record


def test_a_search_lists_its_servable_candidates_and_finds_one_by_name() -> None:
    assert FRONTIER.servable == (CANDIDATE,) and FRONTIER.named("heads50") == REFUSED
    assert str(CANDIDATE) == "units50+int8_static: 9 bytes, p50 0.04 ms, quality 0.6667"
    assert str(REFUSED) == "heads50: refused: no attention"


def test_a_broken_report_is_one_with_a_fatal_failure() -> None:
    assert DATA.broken
    assert not DataReport(window=WINDOW, rows=1, quarantined=0, seconds=0).broken


def test_a_model_is_called_by_name_and_version() -> None:
    assert str(MODEL) == "toy@3"
    assert str(ModelRef(name="toy", uri="models:/m-1")) == "toy"


def test_short_ids_depend_on_their_parts_alone() -> None:
    # printf 'toy\037gate\0373' | sha256sum
    assert short_id("toy", "gate", 3) == "446274328136"
    assert short_id("toy", "gate", "3") == short_id("toy", "gate", 3)
    assert len({short_id(), short_id("a", "b"), short_id("ab"), short_id("b", "a"), short_id("a", "b", "")}) == 5


def test_the_evidence_of_a_verdict_comes_back_as_steps() -> None:
    evidence = VERDICT.evidence | {"steps": [STEP.model_dump(mode="json")]}
    assert evidence_steps(VERDICT.model_copy(update={"evidence": evidence})) == (STEP,)
    assert evidence_steps(VERDICT) == () and not STEP.alarm
    assert STEP.model_copy(update={"log_evidence": 7.7}).alarm


def test_a_column_is_unusual_only_beyond_a_limit() -> None:
    assert not COLUMN.unusual
    assert COLUMN.model_copy(update={"limit": 0.3}).unusual and not COLUMN.model_copy(update={"limit": 0.4}).unusual


def test_every_response_says_how_its_refresh_makes_the_student() -> None:
    assert set(REFRESH_MODES) == set(typing.get_args(Response))
    assert {mode for mode in REFRESH_MODES.values() if mode} == set(typing.get_args(RefreshModeName))
    assert all(
        REFRESH_MODES[mode] == mode for mode in typing.get_args(RefreshModeName)
    )  # `watch.responses` names modes
    expected = {"hold": None, "reuse": None, "renew": "redistil"}
    for response in typing.get_args(Response):
        verdict = Verdict(
            verdict_id="v",
            kind="watch",
            agent="toy",
            as_of=datetime(2024, 1, 1, tzinfo=UTC),
            result="drift",
            response=response,
            summary="s",
        )
        assert verdict.refresh_mode == expected.get(response, response)
    assert "refresh_mode" not in verdict.model_dump()
