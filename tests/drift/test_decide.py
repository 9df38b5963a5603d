"""Every result of a watch, every threshold, and the replay of the evidence."""

from datetime import timedelta, timezone
from math import log

import numpy as np
import pytest
from pydantic import ValidationError

from stillhouse.config import Responses
from stillhouse.drift.decide import decide, decide_from_evidence
from stillhouse.drift.evidence import joint_evidence
from stillhouse.errors import WindowError
from stillhouse.records import Cost, NamedQuality, TeacherChange, Verdict, short_id

DAY = timedelta(days=1)


def watch(
    make, report, data=None, last_refresh=None, as_of=None, steps=(), cost=None, new_rows=None, changes=(), **thresholds
):
    config = make.config(**(thresholds or {"psi": 0.25}))
    return decide(
        report,
        data or make.data(),
        config,
        as_of=as_of or make.now,
        last_refresh=last_refresh,
        steps=steps,
        cost=cost,
        new_rows=new_rows,
        changes=changes,
    )


def reason(verdict, measure):
    return next(reason for reason in verdict.reasons if reason.measure == measure)


def test_drift(make):
    verdict = watch(make, make.report(), last_refresh=make.now - 14 * DAY)
    assert (verdict.kind, verdict.result, verdict.response) == ("watch", "drift", "redistil")
    psi = reason(verdict, "psi")
    assert (psi.value, psi.threshold, psi.failed) == (0.4, 0.25, True)
    assert "temp 0.4" in verdict.summary


def test_no_drift(make):
    verdict = watch(make, make.report({"temp": 0.25}))
    assert (verdict.result, verdict.response) == ("no_drift", "hold")
    assert not reason(verdict, "psi").failed


def test_cooling_down_names_its_end(make):
    verdict = watch(make, make.report(), last_refresh=make.now - 13 * DAY)
    assert (verdict.result, verdict.response) == ("cooling_down", "hold")
    assert "2013-06-02 00:00 UTC" in verdict.summary
    assert watch(make, make.report({"temp": 0.1}), last_refresh=make.now).result == "no_drift"


@pytest.mark.parametrize("measured", [True, False])
def test_data_broken_comes_first(make, measured):
    verdict = watch(make, make.report() if measured else None, make.data(rows=0, fatal=True))
    assert (verdict.result, verdict.response) == ("data_broken", "hold")
    assert "3 rows of nonsense" in verdict.summary and verdict.reasons[0].failed


def test_not_enough_evidence(make):
    for verdict in (
        watch(make, make.report(current_rows=99)),
        watch(make, None, make.data(rows=120, quarantined=21)),
    ):
        assert (verdict.result, verdict.response) == ("not_enough_evidence", "hold")
        assert (reason(verdict, "rows").value, reason(verdict, "rows").threshold) == (99, 100)


def test_enough_rows_without_a_measurement_cannot_be_decided(make):
    with pytest.raises(WindowError, match="measure it first"):
        watch(make, None)


def test_psi_needs_as_many_columns_as_configured(make):
    report = make.report({"a": 0.5, "b": 0.3, "c": 0.1})
    assert watch(make, report, psi=0.25, shifted_columns=2).result == "drift"
    verdict = watch(make, report, psi=0.25, shifted_columns=3)
    assert verdict.result == "no_drift" and reason(verdict, "psi").value == 0.1
    assert "3 needed" in reason(verdict, "psi").text
    assert reason(watch(make, report, psi=0.25, shifted_columns=4), "psi").value is None


def test_output_psi(make):
    report = make.report(outputs=(make.column("margin", 0.1), make.column("p(yes)", 0.3)))
    assert watch(make, report, output_psi=0.25).result == "drift"
    assert watch(make, report, output_psi=0.35).result == "no_drift"


def test_ks_of_numbers_with_a_plain_threshold(make):
    report = make.report({"temp": 0.0, "wind": 0.0})  # both with a distance of 0.1
    assert watch(make, report, ks=0.05).result == "drift"
    assert watch(make, report, ks=0.05, shifted_columns=2).result == "drift"
    passed = watch(make, report, ks=0.15)
    assert passed.result == "no_drift" and reason(passed, "ks").value == 0.1
    assert watch(make, make.report({"temp": 9.0}), ks=0.05, shifted_columns=2).result == "no_drift"


@pytest.mark.parametrize(
    ("process", "result", "response"),
    [
        ("disagreement", "harmful_drift", "redistil"),
        ("student_outcomes", "harmful_drift", "redistil"),
        ("teacher_outcomes", "teacher_failing", "renew"),
    ],
)
def test_evidence_that_reaches_the_budget_decides(make, process, result, response):
    calm = make.report({"temp": 0.0})
    verdict = watch(make, calm, steps=[make.step(process, 2161)])
    assert (verdict.result, verdict.response) == (result, response)
    evidence = reason(verdict, f"evidence_{process}")
    assert evidence.failed and evidence.value == pytest.approx(2161) and evidence.threshold == pytest.approx(2160)
    assert "2160" in verdict.summary
    assert watch(make, calm, steps=[make.step(process, 2159)]).result == "no_drift"
    cooling = watch(make, calm, steps=[make.step(process, 1e300)], last_refresh=make.now - DAY)
    assert (cooling.result, cooling.response) == ("cooling_down", "hold")


def test_a_failing_teacher_must_not_teach_a_new_student(make):
    steps = [make.step("disagreement", 1e9), make.step("teacher_outcomes", 1e9)]
    assert watch(make, make.report(), steps=steps).response == "renew"


CHANGE = TeacherChange(teacher="rules", before="v1", now="v2")


def test_a_changed_teacher_is_followed_at_once(make):
    calm, failing = make.report({"temp": 0.0}), [make.step("teacher_outcomes", 1e9)]
    for steps in ((), failing):
        verdict = watch(make, calm, changes=[CHANGE], steps=steps)
        assert (verdict.result, verdict.response) == ("teacher_changed", "renew")
    assert "teacher rules is version v2 now, and the champion's is v1" in verdict.summary
    assert reason(verdict, "teacher_version").failed
    assert decide_from_evidence(verdict.evidence) == verdict
    cooling = watch(make, calm, changes=[CHANGE], last_refresh=make.now - DAY)
    assert (cooling.result, cooling.response) == ("cooling_down", "hold")


def test_a_changed_teacher_that_was_tried_in_vain_asks_for_nothing(make):
    verdict = watch(make, make.report({"temp": 0.0}), changes=[CHANGE.model_copy(update={"tried": True})])
    assert (verdict.result, verdict.response) == ("no_drift", "hold")
    assert "was not promoted" in reason(verdict, "teacher_version").text


def test_the_policy_payoff_follows_a_changed_teacher_without_a_prediction(make):
    verdict = watch(make, make.report({"temp": 0.0}), changes=[CHANGE])
    payoff = decide_from_evidence(verdict.evidence | {"policy": "payoff"})
    assert (payoff.result, payoff.response) == ("teacher_changed", "renew")
    calm = decide_from_evidence(watch(make, make.report({"temp": 0.0})).evidence | {"policy": "payoff"})
    assert calm.response == "hold"


def test_evidence_above_the_largest_float_stays_finite(make):
    verdict = watch(make, make.report({"temp": 0.0}), steps=[make.step(log_evidence=5000.0)])
    assert verdict.result == "harmful_drift"
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_inputs_that_moved_are_benign_while_the_student_agrees_with_its_teacher(make):
    moved = make.screened(True, "temp")
    agrees = make.report({"temp": 0.2}, screened=moved, disagreement=make.disagreement(0.07))
    verdict = watch(make, agrees, steps=[make.step()])
    assert (verdict.result, verdict.response) == ("benign_shift", "hold")
    assert "temp" in verdict.summary and reason(verdict, "screen").failed
    disagrees = make.report({"temp": 0.2}, screened=moved, disagreement=make.disagreement(0.09))
    verdict = watch(make, disagrees, steps=[make.step()])
    assert (verdict.result, verdict.response) == ("not_enough_evidence", "hold")
    assert "accumulates" in verdict.summary
    not_compared = make.report({"temp": 0.2}, screened=moved)
    assert watch(make, not_compared, steps=[make.step()]).result == "not_enough_evidence"
    still = make.report({"temp": 0.2}, screened=make.screened(False), disagreement=make.disagreement(0.07))
    assert watch(make, still, steps=[make.step()]).result == "no_drift"


def test_without_a_budget_the_reference_gives_the_null_mean(make):
    moved = make.screened(True, "temp")
    report = make.report(
        {"temp": 0.2},
        screened=moved,
        disagreement=make.disagreement(0.12),
        disagreement_reference=make.disagreement(0.1),
    )
    assert watch(make, report, disagreement=0.05).result == "benign_shift"
    assert watch(make, report, psi=0.25).result == "not_enough_evidence"


def test_the_verdict_carries_its_cost(make):
    cost = Cost(teacher_calls=50, teacher_calls_since=1200, seconds=0.2)
    assert watch(make, make.report(), cost=cost).cost == cost
    assert watch(make, make.report()).cost is None


def test_disagreement_is_compared_by_its_rise(make):
    report = make.report(disagreement=make.disagreement(0.15), disagreement_reference=make.disagreement(0.10))
    verdict = watch(make, report, disagreement=0.04)
    assert verdict.result == "drift" and reason(verdict, "disagreement").value == pytest.approx(0.05)
    assert watch(make, report, disagreement=0.06).result == "no_drift"
    alone = make.report(disagreement=make.disagreement(0.15))
    assert reason(watch(make, alone, disagreement=0.06), "disagreement").value == 0.15


def test_auc_drop(make):
    report = make.report(quality=make.quality(0.70), quality_reference=make.quality(0.75))
    assert watch(make, report, auc_drop=0.04).result == "drift"
    assert watch(make, report, auc_drop=0.06).result == "no_drift"
    few = make.report(quality=make.quality(0.5, rows=99), quality_reference=make.quality(0.75))
    verdict = watch(make, few, auc_drop=0.04)
    assert verdict.result == "no_drift" and "99 outcomes" in reason(verdict, "auc_drop").text


def test_accuracy_drop(make):
    report = make.report(quality=make.quality(0.70), quality_reference=make.quality(0.70))
    fallen = report.quality.model_copy(update={"accuracy": report.quality.accuracy - 0.1})
    report = report.model_copy(update={"quality": fallen})
    assert watch(make, report, accuracy_drop=0.09).result == "drift"
    assert watch(make, report, accuracy_drop=0.11).result == "no_drift"


def test_the_measure_that_models_are_compared_by_is_reported_without_a_threshold(make):
    report = make.report(quality=make.quality(0.70), quality_reference=make.quality(0.75))
    shown = {reason.measure for reason in watch(make, report, psi=0.3).reasons}
    assert "auc_drop" in shown and "accuracy_drop" not in shown
    many = {
        name: getattr(report, name).model_copy(update={"actions": 150}) for name in ("quality", "quality_reference")
    }
    shown = {reason.measure for reason in watch(make, report.model_copy(update=many), psi=0.3).reasons}
    assert "accuracy_drop" in shown and "auc_drop" not in shown


def test_a_threshold_without_a_measurement_has_a_reason_that_says_so(make):
    verdict = watch(make, make.report(), output_psi=0.1, disagreement=0.1, auc_drop=0.1)
    assert verdict.result == "no_drift"
    assert [r.measure for r in verdict.reasons] == ["psi", "output_psi", "disagreement", "auc_drop"]
    assert all(r.value is None and not r.failed for r in verdict.reasons[1:])


def test_a_measurement_without_a_threshold_is_only_reported(make):
    report = make.report({"temp": 9.0}, outputs=(make.column("margin", 9.0),))
    verdict = watch(make, report, disagreement=0.1)
    assert verdict.result == "no_drift"
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
    assert len({verdict.result for verdict in verdicts}) == 7
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
def test_the_configured_response_is_used_unless_it_was_refused(make, refused, response):
    config = make.config(psi=0.25)
    responses = {"harmful_drift": "update", "drift": "update"}
    config = config.model_copy(update={"watch": config.watch.model_copy(update={"responses": Responses(**responses)})})
    arguments = {"as_of": make.now, "last_refresh": make.now - 30 * DAY, "refused": refused}
    plain = decide(make.report(), make.data(), config, **arguments)
    assert (plain.result, plain.response) == ("drift", response)
    harm = decide(make.report({"temp": 0.0}), make.data(), config, steps=[make.step("disagreement", 2161)], **arguments)
    assert (harm.result, harm.response) == ("harmful_drift", response)
    assert decide_from_evidence(harm.evidence) == harm
    failing = decide(make.report(), make.data(), config, steps=[make.step("teacher_outcomes", 2161)], **arguments)
    assert failing.response == "renew"


def three_steps(make, *evidence, budget=100):
    """The last steps of three processes that share a budget evenly."""
    names = ("disagreement", "student_outcomes", "teacher_outcomes")
    alone = log(3 * budget)
    return [
        make.step(name, value, share=1 / 3, log_threshold=alone) for name, value in zip(names, evidence, strict=True)
    ]


@pytest.mark.parametrize(
    ("evidence", "result", "failed"),
    [
        ((99, 99, 99), "no_drift", set()),
        ((150, 99, 52), "harmful_drift", {"evidence"}),
        ((52, 99, 150), "teacher_failing", {"evidence"}),
        ((1, 301, 1), "harmful_drift", {"evidence", "evidence_student_outcomes"}),
        ((1, 1e9, 302), "teacher_failing", {"evidence", "evidence_student_outcomes", "evidence_teacher_outcomes"}),
    ],
)
def test_processes_share_one_budget(make, evidence, result, failed):
    """A budget of 100: the mean of the three is compared with it, and one process alone must reach 300."""
    verdict = watch(make, make.report({"temp": 0.0}), steps=three_steps(make, *evidence))
    assert verdict.result == result
    assert {r.measure for r in verdict.reasons if r.failed} == failed
    together = reason(verdict, "evidence")
    assert together.threshold == pytest.approx(100) and together.value == pytest.approx(sum(evidence) / 3)
    assert all(r.failed == (r.value >= r.threshold) for r in verdict.reasons if r.measure.startswith("evidence"))
    if failed:  # the summary names a reason that failed
        assert next(r for r in verdict.reasons if r.text in verdict.summary).failed, verdict.summary
    assert decide_from_evidence(verdict.evidence) == verdict


def test_without_new_rows_no_second_refresh_whatever_the_clock_says(make):
    steps = three_steps(make, 1, 1e9, 1)
    for at in (make.now, make.now - 300 * DAY):  # at the time of the last refresh, and long after its cooldown
        verdict = watch(make, make.report(), steps=steps, last_refresh=at, new_rows=False)
        assert (verdict.result, verdict.response) == ("cooling_down", "hold")
        assert "nothing was observed since the last refresh" in verdict.summary
        assert decide_from_evidence(verdict.evidence) == verdict
    assert watch(make, make.report(), last_refresh=make.now - 300 * DAY, new_rows=True).result == "drift"
    assert watch(make, make.report({"temp": 0.0}), last_refresh=make.now, new_rows=False).result == "no_drift"


def test_no_drift_is_not_concluded_if_the_quality_fell(make):
    report = make.report({"temp": 0.0}, quality=make.quality(0.43), quality_reference=make.quality(0.75))
    verdict = watch(make, report)
    assert (verdict.result, verdict.response) == ("not_enough_evidence", "hold")
    assert "AUC 0.430 on 1000 outcomes, -0.320 against 0.750" in verdict.summary
    chance = make.report({"temp": 0.0}, quality=make.quality(0.74), quality_reference=make.quality(0.75))
    assert watch(make, chance).result == "no_drift"


def test_a_shift_is_not_benign_while_the_students_loss_has_doubled(make):
    before = make.quality(0.75).model_copy(update={"brier": 0.15})
    report = make.report(
        {"temp": 0.2},
        screened=make.screened(True, "temp"),
        disagreement=make.disagreement(0.01),
        quality=make.quality(0.75),
        quality_reference=before,
    )
    verdict = watch(make, report, steps=[make.step()])
    assert verdict.result == "not_enough_evidence" and "Brier score is 0.300" in verdict.summary
    high = watch(make, report.model_copy(update={"quality": before}), steps=[make.step("student_outcomes", mean=0.17)])
    assert high.result == "not_enough_evidence" and "mean loss of the last step 0.170" in high.summary
    assert watch(make, report.model_copy(update={"quality": before}), steps=[make.step()]).result == "benign_shift"


def test_a_summary_claims_no_more_than_was_measured(make):
    assert "no history yet" in watch(make, make.report({"temp": 9.0}), disagreement=0.1).summary
    calm = make.report({"temp": 0.0}, screened=make.screened(False))
    assert watch(make, calm).summary == "nothing moved beyond its usual range"


def test_verdicts_of_random_figures_do_not_contradict_them(make):
    """Whatever is measured, a calm verdict has no figure that is worse than the null allows."""
    generator, seen = np.random.default_rng(12), set()

    def quality():
        score, brier = generator.uniform(0.4, 1.0, 2)
        actions = int(generator.choice([2, 5]))
        scores = make.quality(
            float(score) if generator.random() < 0.8 else None, rows=int(generator.integers(100, 3000))
        )
        return scores.model_copy(
            update={"accuracy": float(generator.uniform(0.4, 1)), "brier": float(brier) / 2, "actions": actions}
        )

    def maybe(value, chance=0.7):
        return value if generator.random() < chance else None

    for _ in range(1500):
        moved = bool(generator.random() < 0.4)
        before, now = quality(), quality()
        if generator.random() < 0.5:  # much as it was
            now = before.model_copy(update={"rows": now.rows})
        now = now.model_copy(update={"actions": before.actions})
        report = make.report(
            {"temp": float(generator.exponential(0.1))},
            screened=maybe(make.screened(moved, *(["temp"] if moved else []))),
            disagreement=maybe(make.disagreement(float(generator.uniform(0, 0.12)))),
            disagreement_reference=maybe(make.disagreement(0.05)),
            quality=maybe(now),
            quality_reference=maybe(before),
        )
        steps = [
            step.model_copy(update={"mean": maybe(float(generator.uniform(0, 0.2))), "null_mean": 0.08})
            for step in three_steps(make, *np.exp(generator.uniform(-5, 7, 3)))
        ]
        steps = steps if generator.random() < 0.7 else []
        verdict = watch(make, report, steps=steps, psi=0.25)
        seen.add(verdict.result)
        for r in verdict.reasons:
            if r.value is not None and r.threshold is not None:
                strict = r.measure in ("psi", "auc_drop", "accuracy_drop", "disagreement", "screen")
                assert r.failed == (r.value > r.threshold if strict else r.value >= r.threshold), r
        measure = {r.measure for r in verdict.reasons}
        judged_by = {q.measure for q in (report.quality, report.quality_reference) if q}
        assert "auc_drop" not in measure or judged_by == {"auc"}
        assert "accuracy_drop" not in measure or "accuracy" in judged_by
        if verdict.result not in ("no_drift", "benign_shift"):
            continue
        assert not any(r.failed for r in verdict.reasons if r.measure != "screen" or verdict.result == "no_drift")
        assert all(step.mean is None or step.mean <= 2 * step.null_mean for step in steps)
        if report.quality and report.quality_reference:
            fall = next(r.value for r in verdict.reasons if r.measure in ("auc_drop", "accuracy_drop"))
            assert fall is None or fall <= 0.1
            assert report.quality.brier <= 1.5 * report.quality_reference.brier
        if report.disagreement and steps:
            assert report.disagreement.total_variation <= 0.08
        together = joint_evidence(steps)
        assert together is None or together[0] < together[1]
    assert seen >= {"no_drift", "benign_shift", "not_enough_evidence", "harmful_drift", "teacher_failing", "drift"}


def test_a_fall_of_episodes_counts_episodes(make):
    """A return of 73 against 80 of 100 is a fall on 4000 episodes, and may be chance on 10, whatever the rows are."""

    def quality(value, episodes):
        named = NamedQuality(measure="return", value=value, unit="steps", low=0, high=100, episodes=episodes)
        return make.quality(0.7, rows=5000).model_copy(update={"named": named})

    for episodes, result in ((4000, "not_enough_evidence"), (10, "no_drift")):
        report = make.report({"temp": 0.0}, quality=quality(73.0, episodes), quality_reference=quality(80.0, episodes))
        verdict = watch(make, report)
        assert verdict.result == result
        assert reason(verdict, "return_drop").text.startswith(
            f"return 73.000 in {episodes} episodes, -7.000 against 80"
        )
