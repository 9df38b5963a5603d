"""Every outcome of a watch, every threshold, and the replay of the evidence."""

from datetime import timedelta, timezone

import pytest
from pydantic import ValidationError

from stillhouse.config import Responses
from stillhouse.drift.decide import decide, decide_from_evidence
from stillhouse.errors import WindowError
from stillhouse.records import Cost, Verdict, short_id

DAY = timedelta(days=1)


def watch(make, report, data=None, last_refresh=None, as_of=None, steps=(), cost=None, **thresholds):
    config = make.config(**(thresholds or {"psi": 0.25}))
    as_of = as_of or make.now
    return decide(report, data or make.data(), config, as_of=as_of, last_refresh=last_refresh, steps=steps, cost=cost)


def reason(verdict, measure):
    return next(reason for reason in verdict.reasons if reason.measure == measure)


def test_drift(make):
    verdict = watch(make, make.report(), last_refresh=make.now - 14 * DAY)
    assert (verdict.kind, verdict.outcome, verdict.response) == ("watch", "drift", "redistil")
    found = reason(verdict, "psi")
    assert (found.value, found.threshold, found.crossed) == (0.4, 0.25, True)
    assert "temp 0.4" in verdict.summary


def test_no_drift(make):
    verdict = watch(make, make.report({"temp": 0.25}))
    assert (verdict.outcome, verdict.response) == ("no_drift", "hold")
    assert not reason(verdict, "psi").crossed


def test_cooling_down_says_until_when(make):
    verdict = watch(make, make.report(), last_refresh=make.now - 13 * DAY)
    assert (verdict.outcome, verdict.response) == ("cooling_down", "hold")
    assert "2013-06-02 00:00 UTC" in verdict.summary
    assert watch(make, make.report({"temp": 0.1}), last_refresh=make.now).outcome == "no_drift"


@pytest.mark.parametrize("measured", [True, False])
def test_data_broken_comes_first(make, measured):
    verdict = watch(make, make.report() if measured else None, make.data(rows=0, fatal=True))
    assert (verdict.outcome, verdict.response) == ("data_broken", "hold")
    assert "3 rows of nonsense" in verdict.summary and verdict.reasons[0].crossed


def test_not_enough_evidence(make):
    for verdict in (
        watch(make, make.report(current_rows=99)),
        watch(make, None, make.data(rows=120, quarantined=21)),
    ):
        assert (verdict.outcome, verdict.response) == ("not_enough_evidence", "hold")
        assert (reason(verdict, "rows").value, reason(verdict, "rows").threshold) == (99, 100)


def test_enough_sound_rows_without_a_measurement_cannot_be_decided(make):
    with pytest.raises(WindowError, match="measure first"):
        watch(make, None)


def test_psi_needs_as_many_columns_as_configured(make):
    report = make.report({"a": 0.5, "b": 0.3, "c": 0.1})
    assert watch(make, report, psi=0.25, shifted_columns=2).outcome == "drift"
    verdict = watch(make, report, psi=0.25, shifted_columns=3)
    assert verdict.outcome == "no_drift" and reason(verdict, "psi").value == 0.1
    assert "3 needed" in reason(verdict, "psi").text
    assert reason(watch(make, report, psi=0.25, shifted_columns=4), "psi").value is None


def test_output_psi(make):
    report = make.report(outputs=(make.column("margin", 0.1), make.column("p(yes)", 0.3)))
    assert watch(make, report, output_psi=0.25).outcome == "drift"
    assert watch(make, report, output_psi=0.35).outcome == "no_drift"


def test_ks_of_numbers_with_a_plain_threshold(make):
    report = make.report({"temp": 0.0, "wind": 0.0})  # both with a distance of 0.1
    assert watch(make, report, ks=0.05).outcome == "drift"
    assert watch(make, report, ks=0.05, shifted_columns=2).outcome == "drift"
    held = watch(make, report, ks=0.15)
    assert held.outcome == "no_drift" and reason(held, "ks").value == 0.1
    assert watch(make, make.report({"temp": 9.0}), ks=0.05, shifted_columns=2).outcome == "no_drift"


@pytest.mark.parametrize(
    ("process", "outcome", "response"),
    [
        ("disagreement", "harmful_drift", "redistil"),
        ("student_outcomes", "harmful_drift", "redistil"),
        ("teacher_outcomes", "teacher_failing", "renew"),
    ],
)
def test_evidence_that_reaches_the_budget_decides(make, process, outcome, response):
    calm = make.report({"temp": 0.0})
    verdict = watch(make, calm, steps=[make.step(process, 2161)])
    assert (verdict.outcome, verdict.response) == (outcome, response)
    found = reason(verdict, f"evidence_{process}")
    assert found.crossed and found.value == pytest.approx(2161) and found.threshold == pytest.approx(2160)
    assert "2160" in verdict.summary
    assert watch(make, calm, steps=[make.step(process, 2159)]).outcome == "no_drift"
    cooling = watch(make, calm, steps=[make.step(process, 1e300)], last_refresh=make.now - DAY)
    assert (cooling.outcome, cooling.response) == ("cooling_down", "hold")


def test_a_failing_teacher_must_not_teach_a_new_student(make):
    steps = [make.step("disagreement", 1e9), make.step("teacher_outcomes", 1e9)]
    assert watch(make, make.report(), steps=steps).response == "renew"


def test_evidence_beyond_every_number_is_still_a_number(make):
    verdict = watch(make, make.report({"temp": 0.0}), steps=[make.step(log_evidence=5000.0)])
    assert verdict.outcome == "harmful_drift"
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_inputs_that_moved_are_benign_while_the_student_agrees_with_its_teacher(make):
    moved = make.screened(True, "temp")
    agrees = make.report({"temp": 0.2}, screened=moved, disagreement=make.disagreement(0.07))
    verdict = watch(make, agrees, steps=[make.step()])
    assert (verdict.outcome, verdict.response) == ("benign_shift", "hold")
    assert "temp" in verdict.summary and reason(verdict, "screen").crossed
    parts = make.report({"temp": 0.2}, screened=moved, disagreement=make.disagreement(0.09))
    verdict = watch(make, parts, steps=[make.step()])
    assert (verdict.outcome, verdict.response) == ("not_enough_evidence", "hold")
    assert "accumulates" in verdict.summary
    unasked = make.report({"temp": 0.2}, screened=moved)
    assert watch(make, unasked, steps=[make.step()]).outcome == "not_enough_evidence"
    still = make.report({"temp": 0.2}, screened=make.screened(False), disagreement=make.disagreement(0.07))
    assert watch(make, still, steps=[make.step()]).outcome == "no_drift"


def test_without_a_budget_the_reference_says_what_agreement_is(make):
    moved = make.screened(True, "temp")
    report = make.report(
        {"temp": 0.2},
        screened=moved,
        disagreement=make.disagreement(0.12),
        disagreement_reference=make.disagreement(0.1),
    )
    assert watch(make, report, disagreement=0.05).outcome == "benign_shift"
    assert watch(make, report, psi=0.25).outcome == "not_enough_evidence"


def test_the_verdict_carries_its_cost(make):
    cost = Cost(teacher_calls=50, teacher_calls_since=1200, seconds=0.2)
    assert watch(make, make.report(), cost=cost).cost == cost
    assert watch(make, make.report()).cost is None


def test_disagreement_is_judged_on_its_rise(make):
    report = make.report(disagreement=make.disagreement(0.15), disagreement_reference=make.disagreement(0.10))
    verdict = watch(make, report, disagreement=0.04)
    assert verdict.outcome == "drift" and reason(verdict, "disagreement").value == pytest.approx(0.05)
    assert watch(make, report, disagreement=0.06).outcome == "no_drift"
    alone = make.report(disagreement=make.disagreement(0.15))
    assert reason(watch(make, alone, disagreement=0.06), "disagreement").value == 0.15


def test_auc_drop(make):
    report = make.report(quality=make.quality(0.70), quality_reference=make.quality(0.75))
    assert watch(make, report, auc_drop=0.04).outcome == "drift"
    assert watch(make, report, auc_drop=0.06).outcome == "no_drift"
    few = make.report(quality=make.quality(0.5, rows=99), quality_reference=make.quality(0.75))
    verdict = watch(make, few, auc_drop=0.04)
    assert verdict.outcome == "no_drift" and "99 outcomes" in reason(verdict, "auc_drop").text


def test_accuracy_drop(make):
    report = make.report(quality=make.quality(0.70), quality_reference=make.quality(0.70))
    fallen = report.quality.model_copy(update={"accuracy": report.quality.accuracy - 0.1})
    report = report.model_copy(update={"quality": fallen})
    assert watch(make, report, accuracy_drop=0.09).outcome == "drift"
    assert watch(make, report, accuracy_drop=0.11).outcome == "no_drift"


def test_what_the_models_are_compared_by_is_shown_without_a_threshold(make):
    report = make.report(quality=make.quality(0.70), quality_reference=make.quality(0.75))
    shown = {each.measure for each in watch(make, report, psi=0.3).reasons}
    assert "auc_drop" in shown and "accuracy_drop" not in shown
    many = {
        name: getattr(report, name).model_copy(update={"actions": 150}) for name in ("quality", "quality_reference")
    }
    shown = {each.measure for each in watch(make, report.model_copy(update=many), psi=0.3).reasons}
    assert "accuracy_drop" in shown and "auc_drop" not in shown


def test_a_threshold_without_a_measurement_has_a_reason_that_says_so(make):
    verdict = watch(make, make.report(), output_psi=0.1, disagreement=0.1, auc_drop=0.1)
    assert verdict.outcome == "no_drift"
    assert [r.measure for r in verdict.reasons] == ["psi", "output_psi", "disagreement", "auc_drop"]
    assert all(r.value is None and not r.crossed for r in verdict.reasons[1:])


def test_a_measurement_without_a_threshold_is_only_reported(make):
    report = make.report({"temp": 9.0}, outputs=(make.column("margin", 9.0),))
    verdict = watch(make, report, disagreement=0.1)
    assert verdict.outcome == "no_drift"
    assert reason(verdict, "psi").threshold is None and reason(verdict, "output_psi").value == 9.0


def test_the_same_watch_has_the_same_id(make):
    verdict = watch(make, make.report())
    elsewhere = make.now.astimezone(timezone(timedelta(hours=-5)))
    assert verdict.verdict_id == short_id("toy", "watch", make.now.isoformat(), "toy@3")
    assert watch(make, make.report(), as_of=elsewhere) == verdict.model_copy(
        update={"evidence": verdict.evidence | {"as_of": "2013-05-31T19:00:00-05:00"}}
    )
    assert watch(make, make.report(), as_of=make.now + DAY).verdict_id != verdict.verdict_id
    assert watch(make, make.report(champion="toy@4")).verdict_id != verdict.verdict_id


def test_replay_gives_the_identical_verdict(make):
    full = make.report(
        {"a": 1 / 3, "b": 0.1 + 0.2},
        outputs=(make.column("margin", 0.1), make.column("p(yes)", 0.3)),
        disagreement=make.disagreement(0.15),
        disagreement_reference=make.disagreement(0.1),
        quality=make.quality(None),
        quality_reference=make.quality(0.75),
    )
    verdicts = [
        watch(make, full, psi=0.25, output_psi=0.1, disagreement=0.01, auc_drop=0.1),
        watch(make, full, last_refresh=make.now - DAY),
        watch(make, make.report({"temp": 0.0})),
        watch(make, None, make.data(fatal=True)),
        watch(make, None, make.data(rows=5)),
        watch(
            make, full, steps=[make.step(evidence=1e7)], cost=Cost(teacher_calls=1, teacher_calls_since=2, seconds=0.1)
        ),
        watch(make, full, steps=[make.step("teacher_outcomes", 1e7)], disagreement=1.0),
    ]
    assert len({verdict.outcome for verdict in verdicts}) == 7
    for verdict in verdicts:
        stored = Verdict.model_validate_json(verdict.model_dump_json())
        assert stored == verdict
        assert decide_from_evidence(stored.evidence).model_dump_json() == verdict.model_dump_json()


def test_evidence_must_be_a_watchs(make):
    with pytest.raises(ValidationError):
        decide_from_evidence({"drift": None})
    with pytest.raises(ValidationError, match="timezone"):
        watch(make, make.report(), as_of=make.now.replace(tzinfo=None))


@pytest.mark.parametrize(("refused", "response"), [(False, "update"), (True, "redistil")])
def test_the_agent_file_says_how_drift_is_answered_unless_that_was_refused(make, refused, response):
    config = make.config(psi=0.25)
    responses = {"harmful_drift": "update", "drift": "update"}
    config = config.model_copy(update={"watch": config.watch.model_copy(update={"responses": Responses(**responses)})})
    asked = {"as_of": make.now, "last_refresh": make.now - 30 * DAY, "refused": refused}
    plain = decide(make.report(), make.data(), config, **asked)
    assert (plain.outcome, plain.response) == ("drift", response)
    harm = decide(make.report({"temp": 0.0}), make.data(), config, steps=[make.step("disagreement", 2161)], **asked)
    assert (harm.outcome, harm.response) == ("harmful_drift", response)
    assert decide_from_evidence(harm.evidence) == harm
    failing = decide(make.report(), make.data(), config, steps=[make.step("teacher_outcomes", 2161)], **asked)
    assert failing.response == "renew"
