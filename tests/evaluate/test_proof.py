"""From models and windows to a certificate: every figure belongs to the right model and rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.evaluate.comparing import compare_models
from stillhouse.evaluate.gate import judge, next_anchor
from stillhouse.evaluate.proof import Contender, Yardsticks, prove
from stillhouse.evaluate.scorecard import measure_agreement, measure_disagreement, measure_quality
from stillhouse.quality import AUC
from stillhouse.records import Proof, Refresh, Window
from tests.agents import agent_config

Array = np.ndarray[Any, Any]


def make_rows(count: int, seed: int, window: str) -> pd.DataFrame:
    """P(move) is ``temp``; one row in ten starts from JFK, and one in fifty from nowhere."""
    rng = np.random.default_rng(seed)
    temp = rng.random(count)
    origin = np.where(np.arange(count) % 10 == 0, "JFK", "EWR").astype(object)
    origin[1::50] = None
    observed = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(np.arange(count), unit="h")
    return pd.DataFrame(
        {
            "observed_at": observed,
            "temp": temp,
            "origin": origin,
            "outcome": (rng.random(count) < temp).astype(int),
            "window": window,
        }
    )


WINDOWS = {
    "validation": make_rows(400, 1, "validation"),
    "test": make_rows(1000, 2, "test"),
    "past": make_rows(600, 3, "past"),
}


class Model:
    """Predicts the true probabilities with noise, and records the windows that it was called with."""

    def __init__(self, noise: float, fails_on: str = "") -> None:
        self.noise = noise
        self.fails_on = fails_on
        self.windows: list[str] = []

    def __call__(self, rows: pd.DataFrame) -> Array:
        window = rows["window"].iloc[0]
        self.windows.append(window)
        temp = rows["temp"].to_numpy()
        noise = np.random.default_rng(9).normal(scale=self.noise, size=len(rows))
        move = np.clip(temp + noise, 0.01, 0.99)
        move = np.where(rows["origin"] == self.fails_on, 1 - temp, move) if window != self.fails_on else 1 - temp
        return np.column_stack([1 - move, move])


@pytest.fixture
def refresh(make: Any) -> Refresh:
    window = Window(name="w", start=make.now - timedelta(days=7), end=make.now)
    return Refresh(
        refresh_id="r1",
        agent="toy",
        as_of=make.now,
        trigger="manual",
        cause="me",
        train=window,
        test=window,
        teacher="fit",
        folder="/f",
        run_id="abc",
    )


@pytest.fixture
def proven(make: Any, refresh: Refresh) -> Callable[..., Proof]:
    def proven(
        variants: dict[str, Model],
        champion: Model | None,
        past: bool = True,
        chosen: str = "",
        fits: bool = True,
        **settings: Any,
    ) -> Proof:
        config = make.config({}, **{"non_inferiority_margin": 0.02, **settings})
        windows = {name: rows for name, rows in WINDOWS.items() if past or name != "past"}
        return prove(
            config,
            refresh,
            windows,
            teacher=Contender("teacher", "teacher", Model(0.0), 9000, lambda: None),
            student=Contender("student", "student", Model(0.01), 900),
            variants=[
                Contender(name, "variant", model, 100 * (i + 1), lambda: None)
                for i, (name, model) in enumerate(variants.items())
            ],
            chosen=chosen or next(iter(variants)),
            why="it is the smallest" if fits else "nothing fits: it would take more",
            fits=fits,
            champion=Contender("toy@3", "champion", champion, 500, lambda: None) if champion else None,
            cpu="Zen",
        )

    return proven


def test_cards_hold_the_quality_of_each_model_on_each_window(proven: Callable[..., Proof]) -> None:
    small, exact, old = Model(0.3), Model(0.02), Model(0.05)
    proof = proven({"small": small, "exact": exact}, old, slices=["origin"])
    for card, model in zip((*proof.variants, proof.champion), (small, exact, old), strict=True):
        for name, rows in WINDOWS.items():
            assert card.quality[name] == measure_quality(model(rows), rows["outcome"].to_numpy(), AUC)
    test = WINDOWS["test"]
    assert [card.model for card in proof.variants] == ["small", "exact"]
    assert (proof.champion.model, proof.champion.role, proof.champion.bytes) == ("toy@3", "champion", 500)
    assert proof.student.latency is None
    assert proof.variants[0].latency.calls == 300
    assert {card.cpu for card in (proof.teacher, proof.student, *proof.variants)} == {"Zen"}
    assert proof.variants[1].agreement == measure_agreement(Model(0.0)(test), exact(test))
    jfk = test[test["origin"] == "JFK"]
    assert proof.variants[1].slices["origin=JFK"].rows == len(jfk) == 100
    assert list(proof.variants[1].slices) == ["origin=EWR", "origin=JFK"]


def test_the_teacher_is_scored_on_the_test_window_only(proven: Callable[..., Proof]) -> None:
    """It has seen the outcomes of the other windows, so its figures there would be too good."""
    proof = proven({"exact": Model(0.02)}, None)
    assert list(proof.teacher.quality) == ["test"]
    assert proof.teacher.agreement is None
    assert list(proof.student.quality) == ["validation", "test", "past"]


def test_the_chosen_variant_is_compared_with_the_champion(proven: Callable[..., Proof]) -> None:
    noisy, good, exact, old = Model(0.5), Model(0.05), Model(0.01), Model(0.05)
    proof = proven(
        {"noisy": noisy, "good": good, "exact": exact},
        old,
        chosen="good",
        slices=["origin"],
        slice_margin=0.3,
        min_slice_rows=50,
    )
    assert (proof.chosen, proof.why) == ("good", "it is the smallest")
    certificate = proof.certificate
    assert certificate.nothing_fits == ""
    assert certificate.challenger == proof.variants[1]
    assert certificate.champion == proof.champion
    assert (certificate.refresh_id, certificate.agent) == ("r1", "toy")
    by_window = {comparison.window: comparison for comparison in certificate.comparisons}
    assert list(by_window) == ["test", "origin=EWR", "origin=JFK", "past"]
    for name, margin, others in (
        ("test", 0.02, {}),
        ("past", 0.3, {"role": "reported", "can_grow": False}),
    ):
        rows = WINDOWS[name]
        labels, found = rows["outcome"].to_numpy(), [c for c in certificate.comparisons if c.window == name]
        assert found[0] == compare_models(name, labels, good(rows), old(rows), margin, **others)
    beside = certificate.comparisons[1]
    assert (beside.measure, beside.role, beside.margin) == ("accuracy", "reported", 0.02)
    assert by_window["origin=JFK"].rows == 100
    assert by_window["origin=JFK"].margin == 0.3
    test = WINDOWS["test"]
    assert proof.disagreement == measure_disagreement(Model(0.0)(test), good(test))


def test_small_slices_are_reported_but_not_compared(proven: Callable[..., Proof]) -> None:
    proof = proven({"exact": Model(0.02)}, Model(0.02), slices=["origin"], min_slice_rows=101)
    assert [c.window for c in proof.certificate.comparisons] == ["test", "test", "origin=EWR", "past"]
    assert "origin=JFK" in proof.variants[0].slices


def test_without_a_champion_nothing_is_compared(proven: Callable[..., Proof]) -> None:
    proof = proven({"exact": Model(0.02)}, None, past=False)
    assert proof.champion is None
    assert proof.certificate.comparisons == ()
    assert judge(proof.certificate).result == "promoted"


def test_forgetting_the_past_is_reported(proven: Callable[..., Proof]) -> None:
    """What the champion was once proved on ages: it vetoes nobody by itself."""
    proof = proven({"exact": Model(0.02, fails_on="past")}, Model(0.02))
    verdict = judge(proof.certificate)
    assert verdict.result == "promoted"
    (reason,) = [reason for reason in verdict.reasons if reason.measure == "auc:past"]
    assert not reason.failed and not reason.undecided and reason.value < -0.5
    assert "on the window on which the champion was proved (600 rows, reported only) the challenger is worse" in (
        reason.text
    )


WINTER = {"name": "winter", "start": "2023-01-01T00:00:00Z", "end": "2023-03-01T00:00:00Z"}


def test_forgetting_what_must_be_remembered_is_a_veto(
    proven: Callable[..., Proof], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WINDOWS, "winter", make_rows(600, 5, "winter"))
    remember = {"windows": [WINTER]}
    forgetful = judge(proven({"exact": Model(0.02, fails_on="winter")}, Model(0.02), remember=remember).certificate)
    assert forgetful.result == "refused"
    assert [reason.measure for reason in forgetful.reasons if reason.failed] == ["auc:winter"]
    assert judge(proven({"exact": Model(0.02)}, Model(0.02), remember=remember).certificate).result == "promoted"


def test_a_slice_of_the_past_that_must_be_remembered(proven: Callable[..., Proof]) -> None:
    class ForgetsJfk(Model):
        def __call__(self, rows: pd.DataFrame) -> Array:
            probs = super().__call__(rows)
            forgotten = ((rows["origin"] == "JFK") & (rows["window"] == "past")).to_numpy()
            return np.where(forgotten[:, None], probs[:, ::-1], probs)

    settings: dict[str, Any] = {"remember": {"slices": ["origin"]}, "min_slice_rows": 50, "slice_margin": 0.3}
    verdict = judge(proven({"exact": ForgetsJfk(0.02)}, Model(0.02), **settings).certificate)
    assert [reason.measure for reason in verdict.reasons if reason.failed] == ["auc:past, origin=JFK"]


def test_a_window_to_remember_without_rows_is_named(proven: Callable[..., Proof]) -> None:
    verdict = judge(proven({"exact": Model(0.02)}, Model(0.02), remember={"windows": [WINTER]}).certificate)
    assert verdict.result == "promoted"
    (text,) = [reason.text for reason in verdict.reasons if reason.measure == "remember"]
    assert text == "the window 'winter' that must be remembered has 0 rows with outcomes: too few to compare"


def test_a_small_window_to_remember_cannot_be_decided_by_later_labels(
    proven: Callable[..., Proof], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WINDOWS, "winter", make_rows(40, 5, "winter"))
    verdict = judge(proven({"exact": Model(0.02)}, Model(0.02), remember={"windows": [WINTER]}).certificate)
    assert (verdict.result, verdict.labels_needed) == ("inconclusive", None)
    assert verdict.summary.endswith(
        "later outcomes add no rows to this window: lengthen it, or raise `promotion.slice_margin`"
    )


def test_the_log_loss_is_compared_with_accuracy_beside(proven: Callable[..., Proof]) -> None:
    proof = proven({"exact": Model(0.02)}, Model(0.4), quality={"measure": "log_loss"}, non_inferiority_margin=0.05)
    test, accuracy = proof.certificate.comparisons[:2]
    assert (test.measure, test.unit, test.better, test.span) == ("log_loss", "nats", "lower", -np.log(0.01))
    assert test.difference == test.champion - test.challenger > 0
    assert (accuracy.measure, accuracy.role) == ("accuracy", "no_harm")
    assert proof.variants[0].test.named.measure == "log_loss"
    assert proof.variants[0].test.score == test.challenger
    verdict = judge(proof.certificate)
    assert verdict.result == "promoted"
    assert "log loss 0." in verdict.reasons[0].text and "bound of the gain +0." in verdict.reasons[0].text


def test_a_challenger_that_fails_one_slice_is_refused(proven: Callable[..., Proof]) -> None:
    champion, challenger = Model(0.4), Model(0.02, fails_on="JFK")
    settings: dict[str, Any] = {"past": False, "non_inferiority_margin": 0.2, "min_slice_rows": 50}
    verdict = judge(proven({"exact": challenger}, champion, slices=["origin"], **settings).certificate)
    assert [reason.measure for reason in verdict.reasons if reason.failed] == ["auc:origin=JFK"]
    assert judge(proven({"exact": challenger}, champion, **settings).certificate).result == "promoted"


def test_a_challenger_as_good_as_the_champion_is_promoted(proven: Callable[..., Proof]) -> None:
    proof = proven({"exact": Model(0.02)}, Model(0.02))
    assert judge(proof.certificate).result == "promoted"
    assert Proof.model_validate_json(proof.model_dump_json()) == proof


def test_losses_of_promotions_in_a_row_do_not_add_up(make: Any, refresh: Refresh) -> None:
    """Each refresh loses 20 rows of 2,000 and gains 14, within the margin; twenty together would lose 6 %."""
    config = make.config(actions=3, non_inferiority_margin=0.01, cluster="0s")
    rows = make_rows(2000, 4, "test").assign(outcome=0)
    rng, right = np.random.default_rng(0), {"toy@0": np.arange(2000) < 1600}
    champion, anchor, verdicts = "toy@0", None, []

    def candidate(name: str, role: Any = "champion") -> Contender:
        answers = np.where(right[name][:, None], [0.6, 0.2, 0.2], [0.2, 0.6, 0.2])
        return Contender(name, role, lambda rows: answers[: len(rows)], 500)

    for number in range(1, 21):
        name = f"toy@{number}"
        changed = right[champion].copy()
        changed[rng.choice(np.flatnonzero(right[champion]), 20, replace=False)] = False
        changed[rng.choice(np.flatnonzero(~right[champion]), 14, replace=False)] = True
        right[name] = changed
        windows = {"validation": rows, "test": rows}
        proof = prove(
            config,
            refresh,
            windows,
            teacher=candidate("toy@0", "teacher"),
            student=candidate(name, "student"),
            variants=[candidate(name, "variant")],
            chosen=name,
            why="",
            fits=True,
            champion=candidate(champion),
            yardsticks=Yardsticks(
                candidate(anchor) if anchor else None,
                candidate("toy@0") if anchor != "toy@0" and champion != "toy@0" else None,
            ),
        )
        verdicts.append(judge(proof.certificate))
        assert proof.certificate.anchor == (anchor or champion)
        if verdicts[-1].result == "promoted":
            champion, anchor = name, next_anchor(proof.certificate)
    assert right[champion].mean() >= right["toy@0"].mean() - 0.02
    assert [verdict.result for verdict in verdicts[:2]] == ["promoted", "promoted"]
    assert verdicts[-1].result == "inconclusive"
    assert {reason.measure for reason in verdicts[-1].reasons if reason.undecided} == {"accuracy:anchor"}
    assert anchor == "toy@0"


def test_the_never_refreshed_and_the_best_earlier_champion_are_compared_on_current_rows(
    make: Any, refresh: Refresh
) -> None:
    """The anchor was proven better than the first champion on other rows; today the first one is better."""
    rows, models = make_rows(1500, 4, "test"), {"now": 0.3, "first": 0.01, "middle": 0.1, "poor": 0.6}

    def candidate(name: str, role: Any = "champion") -> Contender:
        return Contender(name, role, Model(models[name]), 500)

    proof = prove(
        make.config(non_inferiority_margin=0.02),
        refresh,
        {"validation": rows, "test": rows},
        teacher=candidate("first", "teacher"),
        student=candidate("now", "student"),
        variants=[candidate("now", "variant")],
        chosen="now",
        why="",
        fits=True,
        champion=candidate("now"),
        yardsticks=Yardsticks(None, candidate("first"), (candidate("poor"), candidate("middle"))),
    )
    by_window = {c.window: c for c in proof.certificate.comparisons if c.role == "cumulative"}
    assert list(by_window) == ["never_refreshed", "best_earlier"]
    middle = measure_quality(Model(0.1)(rows), rows["outcome"].to_numpy(), AUC)
    assert by_window["best_earlier"].champion == pytest.approx(middle.score, abs=1e-9)
    verdict = judge(proof.certificate)
    assert verdict.result == "refused"
    assert "auc:never_refreshed" in {reason.measure for reason in verdict.reasons if reason.failed}


def test_a_variant_that_exceeds_the_budgets_is_refused_with_the_reason(proven: Callable[..., Proof]) -> None:
    proof = proven({"exact": Model(0.02)}, Model(0.02), fits=False)
    assert (proof.chosen, proof.certificate.nothing_fits) == ("exact", "nothing fits: it would take more")
    assert judge(proof.certificate).summary == "exact refused: nothing fits: it would take more"


# --------------------------------------------------------------------------- episodes

OWN = {
    "target": "tests.evaluate.test_proof:warmth",
    "name": "warmth",
    "low": 0,
    "high": 10,
    "on": "episodes",
    "episodes": 60,
}


def warmth(policy: Callable[[pd.DataFrame], Array], seeds: Array, moments: pd.DatetimeIndex) -> Array:
    """Ten times the probability of moving in the warmth, in a world that no window has seen."""
    return 10 * policy(pd.DataFrame({"temp": np.full(len(seeds), 0.9), "origin": "EWR", "window": "world"}))[:, 1]


def actor(move: float) -> Contender:
    def predict(rows: pd.DataFrame) -> Array:
        return np.tile([1 - move, move], (len(rows), 1))

    return Contender("steady", "variant", predict, 100, lambda: None, policy=predict)


def prove_episodes(make: Any, refresh: Refresh, challenger: Contender, champion: Contender, **settings: Any) -> Proof:
    promotion = {"non_inferiority_margin": 1.0, "slice_margin": 2.0, "cluster": "0s", **settings}
    config = agent_config(actions=["stay", "move"], quality={"own": OWN}, promotion=promotion)
    windows = {
        name: rows.assign(observation_id=[f"{name}{number}" for number in range(len(rows))])
        for name, rows in WINDOWS.items()
    }
    exact = Model(0.0)
    return prove(
        config,
        refresh,
        windows,
        teacher=Contender("teacher", "teacher", exact, 9000, lambda: None, policy=exact),
        student=replace(challenger, name="student", role="student"),
        variants=[challenger],
        chosen=challenger.name,
        why="",
        fits=True,
        champion=replace(champion, name="toy@3", role="champion"),
    )


def test_models_are_judged_by_the_episodes_that_they_play(make: Any, refresh: Refresh) -> None:
    """A model that always moves is worse than its champion in accuracy on the rows, and better in the world."""
    exact = Contender("exact", "champion", Model(0.0), 100, policy=Model(0.0))
    proof = prove_episodes(make, refresh, actor(0.95), exact)
    judged = proof.variants[0].test.judged
    assert (judged.measure, judged.value, judged.high, judged.episodes) == ("warmth", pytest.approx(9.5), 10, 60)
    assert proof.teacher.test.score == pytest.approx(9.0) and proof.variants[0].quality["past"].score == pytest.approx(
        9.5
    )
    assert proof.variants[0].test.accuracy < proof.champion.test.accuracy
    test, beside, past = proof.certificate.comparisons
    assert (test.on, test.rows, test.measure, test.role) == ("episodes", 60, "warmth", "non_inferior")
    assert (beside.on, beside.rows, beside.measure, beside.role) == ("rows", 1000, "accuracy", "reported")
    assert (past.window, past.on, past.difference) == ("past", "episodes", pytest.approx(0.5))
    verdict = judge(proof.certificate)
    assert verdict.result == "promoted"
    assert "on test (60 episodes) the challenger is not worse" in verdict.reasons[0].text


def test_more_episodes_and_not_more_labels_decide(make: Any, refresh: Refresh) -> None:
    proof = prove_episodes(make, refresh, actor(0.9), actor(0.9), non_inferiority_margin=0.2)
    verdict = judge(proof.certificate)
    assert (verdict.result, verdict.labels_needed) == ("inconclusive", None)
    assert "162 episodes would decide: raise `quality.own.episodes`" in verdict.summary  # about ln(25) · 10 / 0.2


def test_a_slice_has_no_episodes_and_is_compared_by_accuracy(make: Any, refresh: Refresh) -> None:
    proof = prove_episodes(make, refresh, actor(0.95), actor(0.9), slices=["origin"], min_slice_rows=50)
    of_slice = [one for one in proof.certificate.comparisons if "=" in one.window]
    assert {(one.measure, one.on, one.margin) for one in of_slice} == {("accuracy", "rows", 0.2)}
    assert {quality.measure for quality in proof.variants[0].slices.values()} == {"accuracy"}


def test_a_model_that_plays_nothing_is_judged_by_accuracy(make: Any, refresh: Refresh) -> None:
    proof = prove_episodes(make, refresh, replace(actor(0.9), policy=None), actor(0.9))
    assert proof.variants[0].test.measure == "accuracy" and proof.champion.test.measure == "warmth"
    assert {one.measure for one in proof.certificate.comparisons} == {"accuracy"}
