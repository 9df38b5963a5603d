"""Training: a known function is learned, reproducibly and without side effects."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from stillhouse.config import AgentConfig, Distillation
from stillhouse.distill.losses import label_loss, soften
from stillhouse.distill.split import mask_validation_rows, split_validation
from stillhouse.distill.students import TabularStudent, columns_of, new_student
from stillhouse.distill.train import distil, student_probabilities
from stillhouse.distill.training_set import TrainingSet
from stillhouse.errors import ConfigError
from stillhouse.variant import encode
from tests.agents import agent_config

TENTH_DAY = Distillation(validation_every=10)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With busy cores, two threads are forty times slower than one on so small a model."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_config(student: dict[str, Any] | None = None, **distillation: Any) -> AgentConfig:
    return agent_config(
        observations={
            "columns": {
                "origin": {"type": "category", "values": ["EWR", "JFK", "LGA"]},
                "temp": {"type": "number", "max_missing": 1},
                "carrier": {"type": "category"},
                "wind": {"type": "number"},
            }
        },
        student={"widths": [16], **(student or {})},
        distillation={"epochs": 6, "batch_size": 64, "learning_rate": 0.02, **distillation},
    )


def make_rows(count: int, seed: int) -> tuple[pd.DataFrame, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows, the true probabilities as teacher, and labels drawn from them: a bend, a category, missing values."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        {
            "temp": rng.normal(size=count),
            "wind": rng.exponential(size=count),
            "origin": rng.choice(["EWR", "JFK", "LGA"], count),
            "carrier": rng.choice(["AA", "UA"], count),
        }
    )
    rows.loc[rng.random(count) < 0.1, "temp"] = np.nan
    bend = np.where(rows["temp"].isna(), 1.0, 2 * np.abs(rows["temp"].fillna(0)) - 1.5)
    logit = 4 * bend + 6 * (rows["origin"] == "JFK") - 4 * (rows["origin"] == "LGA")
    move = 1 / (1 + np.exp(-logit.to_numpy()))
    return rows, np.column_stack([1 - move, move]), (rng.random(count) < move).astype(np.int64)


def train_student(
    config: AgentConfig, count: int = 2000, **settings: Any
) -> tuple[TabularStudent, tuple[dict[str, float], ...]]:
    rows, knowledge, labels = make_rows(count, seed=0)
    columns = columns_of(config, rows)
    training_set = TrainingSet(encode(rows, columns), knowledge, labels, numbers=2)
    student = new_student(config, columns, training_set.x.numpy())
    return student, distil(student, training_set, config.distillation, **settings).history


def predict(config: AgentConfig, student: TabularStudent) -> tuple[np.ndarray[Any, Any], ...]:
    rows, knowledge, labels = make_rows(3000, seed=1)
    return student_probabilities(student, encode(rows, columns_of(config, rows))), knowledge, labels


def weights(student: TabularStudent) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])


@pytest.mark.parametrize("outcome_weight", [0.0, 0.3, 1.0])
def test_known_function_is_learned(outcome_weight: float) -> None:
    config = make_config(outcome_weight=outcome_weight)
    student, history = train_student(config)
    probabilities, knowledge, labels = predict(config, student)
    best = roc_auc_score(labels, knowledge[:, 1])
    assert roc_auc_score(labels, probabilities[:, 1]) > max(0.95, best - 0.01)
    assert np.abs(probabilities - knowledge)[:, 1].mean() < 0.08
    assert history[-1]["knowledge_loss"] < 0.3 * history[0]["knowledge_loss"]
    assert not student.training


def test_untrained_student_is_poor() -> None:
    config = make_config()
    student, history = train_student(config, epochs=0)
    probabilities, _, labels = predict(config, student)
    assert history == ()
    assert roc_auc_score(labels, probabilities[:, 1]) < 0.9


def test_zero_epochs_do_not_change_the_student() -> None:
    config = make_config()
    student, _ = train_student(config, count=200)
    before, mode = weights(student).clone(), student.training
    rows, knowledge, labels = make_rows(200, seed=2)
    training_set = TrainingSet(encode(rows, columns_of(config, rows)), knowledge, labels, numbers=2)
    assert distil(student, training_set, config.distillation, epochs=0).history == ()
    assert torch.equal(weights(student), before)
    assert student.training is mode


def test_same_seed_gives_the_same_student() -> None:
    config = make_config({"dropout": 0.2}, epochs=2)
    (first, history), (second, again) = train_student(config, 500), train_student(config, 500)
    assert torch.equal(weights(first), weights(second))
    assert history == again
    another, _ = train_student(make_config({"dropout": 0.2}, epochs=2, seed=1), 500)
    assert not torch.equal(weights(first), weights(another))


def test_training_neither_uses_nor_changes_the_global_random_state() -> None:
    config = make_config({"dropout": 0.2}, epochs=1)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, _ = train_student(config, 300)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    second, _ = train_student(config, 300)
    assert torch.equal(weights(first), weights(second))


def test_progress_and_history_report_every_epoch() -> None:
    epochs_seen: list[tuple[int, dict[str, float]]] = []
    _, history = train_student(
        make_config(epochs=3), 300, progress=lambda epoch, losses: epochs_seen.append((epoch, dict(losses)))
    )
    assert epochs_seen == list(enumerate(history, start=1))
    assert [sorted(losses) for losses in history] == [
        ["knowledge_loss", "outcome_loss", "outcome_weight", "temperature"]
    ] * 3


def test_one_batch_of_one_row() -> None:
    student, history = train_student(make_config(epochs=1), 1)
    assert torch.isfinite(weights(student)).all()
    assert len(history) == 1


def test_training_does_not_change_its_rows() -> None:
    config = make_config(epochs=1)
    rows, knowledge, labels = make_rows(300, seed=0)
    x = encode(rows, columns_of(config, rows))
    copies = [array.copy() for array in (x, knowledge, labels)]
    training_set = TrainingSet(x, knowledge, labels, numbers=2)
    distil(new_student(config, columns_of(config, rows), x), training_set, config.distillation)
    for array, copy in zip((x, knowledge, labels), copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    np.testing.assert_array_equal(training_set.x.numpy(), x)


@pytest.mark.parametrize(("rate", "low", "high"), [(0.3, 0.0, 0.08), (0.0, 0.12, 1.0)])
def test_unknown_code_is_learned_from_hidden_codes(rate: float, low: float, high: float) -> None:
    """Without the origin, the best prediction is the mean over origins (at temperature 1)."""
    config = make_config(unknown_rate=rate, temperature=1.0, outcome_weight=0.0, epochs=20)
    student, _ = train_student(config)
    rows, _, _ = make_rows(3000, seed=1)
    hidden = student_probabilities(student, encode(rows.assign(origin="SFO"), columns_of(config, rows)))
    bend = np.where(rows["temp"].isna(), 1.0, 2 * np.abs(rows["temp"].fillna(0)) - 1.5)
    mean = np.mean([1 / (1 + np.exp(-4 * bend - shift)) for shift in (0, 6, -4)], axis=0)
    assert low < np.abs(hidden[:, 1] - mean).mean() < high


def test_probabilities_sum_to_one() -> None:
    config = make_config()
    student, _ = train_student(config, epochs=1)
    probabilities, _, _ = predict(config, student)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)


# --------------------------------------------------------------------------- validation, checkpoints, losses


def training_sets(config: AgentConfig, *seeds: int, count: int = 600) -> Iterator[TrainingSet]:
    for seed in seeds:
        rows, knowledge, labels = make_rows(count, seed)
        yield TrainingSet(encode(rows, columns_of(config, rows)), knowledge, labels, numbers=2)


def with_losses(config: AgentConfig, *types: str) -> AgentConfig:
    """With losses that agent files refuse: hints, and for two actions decoupled and standardised."""
    settings = config.distillation.model_dump() | {"losses": [{"type": name} for name in types]}
    return config.model_copy(update={"distillation": Distillation.model_validate(settings)})


def fresh(config: AgentConfig, training_set: TrainingSet) -> TabularStudent:
    rows, _, _ = make_rows(600, seed=0)
    return new_student(config, columns_of(config, rows), training_set.x.numpy())


def test_probes_without_a_change_do_not_affect_the_training() -> None:
    """Three clusters are too few for the controller: the student equals that of the fixed settings bit by bit."""
    config = make_config({"dropout": 0.2}, epochs=3)
    training_set, validation = training_sets(config, 0, 1)
    validation.cluster_ids = torch.arange(len(validation)) % 3
    first, second = fresh(config, training_set), fresh(config, training_set)
    history = distil(first, training_set, config.distillation, validation=validation)
    fixed = config.distillation.model_copy(update={"controller": "fixed"})
    assert not history.adapted
    assert distil(second, training_set, fixed, validation=validation).history == history.history
    assert torch.equal(weights(first), weights(second))


def test_wrong_teacher_loses_its_weight_and_right_one_keeps_it() -> None:
    config = make_config(epochs=8, outcome_weight=0.3)
    training_set, validation = training_sets(config, 0, 1, count=2000)
    right = distil(fresh(config, training_set), training_set, config.distillation, validation=validation)
    for part in (training_set, validation):
        part.teacher_probs = part.teacher_probs.flip(1)
    wrong = distil(fresh(config, training_set), training_set, config.distillation, validation=validation)
    assert right.history[-1]["outcome_weight"] <= 0.35
    assert wrong.history[-1]["outcome_weight"] > 0.9
    (change, *_) = [change for change in wrong.changes if change.setting == "outcome_weight"]
    assert change.value > 0.3 and "teacher's bias" in change.reason and change.step > 0


def test_overconfident_teacher_is_calibrated() -> None:
    config = make_config(epochs=4, outcome_weight=0.0)
    training_set, validation = training_sets(config, 0, 1, count=2000)
    calibrated = training_set.teacher_probs.clone()
    for part in (training_set, validation):
        part.teacher_probs = soften(part.teacher_probs, 0.4)
    history = distil(student := fresh(config, training_set), training_set, config.distillation, validation=validation)
    (power,) = [change.value for change in history.changes if change.setting == "calibration"]
    assert power == pytest.approx(1 / 0.4, rel=0.25)
    probs = torch.softmax(student(training_set.x), dim=1)
    assert (probs - calibrated).abs().mean() < (probs - training_set.teacher_probs).abs().mean()


def test_early_stopping_returns_the_best_epoch() -> None:
    """Labels are random: the more the student memorises, the higher its validation loss."""
    config = make_config({"widths": [64]}, epochs=60, patience=2, outcome_weight=1.0, controller="fixed")
    training_set, validation = training_sets(config, 0, 1, count=200)
    for part in (training_set, validation):
        part.labels = torch.randint(2, (200,), generator=torch.Generator().manual_seed(len(part.x)))
    validation.labels = 1 - validation.labels
    history = distil(student := fresh(config, training_set), training_set, config.distillation, validation=validation)
    losses = [epoch["held_out_outcome_loss"] for epoch in history.history]
    assert history.stopped and len(losses) < 60 and losses.index(min(losses)) == len(losses) - 3
    with torch.no_grad():
        assert label_loss(student(validation.x), validation.labels).item() == pytest.approx(min(losses), abs=1e-6)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("losses", [("hinton",), ("hinton", "hints")])
def test_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, losses: tuple[str, ...]) -> None:
    config = with_losses(make_config({"dropout": 0.2}, epochs=5), *losses)
    training_set, validation = training_sets(config, 0, 1)
    for part in (training_set, validation):
        part.features = torch.randn(len(part), 7, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "deep" / "training.safetensors"

    def kill_in_epoch_four(epoch: int, losses: object) -> None:
        if epoch == 4:
            raise KilledError

    with pytest.raises(KilledError):
        distil(
            fresh(config, training_set),
            training_set,
            config.distillation,
            validation=validation,
            checkpoint=file,
            progress=kill_in_epoch_four,
        )
    epochs_seen: list[int] = []
    history = distil(
        resumed := fresh(config, training_set),
        training_set,
        config.distillation,
        validation=validation,
        checkpoint=file,
        progress=lambda epoch, losses: epochs_seen.append(epoch),
    )
    uninterrupted = distil(
        student := fresh(config, training_set), training_set, config.distillation, validation=validation
    )
    assert epochs_seen == [4, 5]
    assert history == uninterrupted
    assert torch.equal(weights(resumed), weights(student))


def test_foreign_or_damaged_checkpoint_is_ignored(tmp_path: Path) -> None:
    config, file = make_config(epochs=2), tmp_path / "training.safetensors"
    training_set, other = training_sets(config, 0, 1)
    distil(fresh(config, training_set), training_set, config.distillation, checkpoint=file)
    epochs_seen: list[int] = []
    for rows in (other, training_set):
        distil(
            fresh(config, rows),
            rows,
            config.distillation,
            checkpoint=file,
            progress=lambda epoch, losses: epochs_seen.append(epoch),
        )
        file.write_bytes(b"half of one")
    assert epochs_seen == [1, 2, 1, 2]


@pytest.mark.parametrize("loss", ["hinton", "decoupled", "standardised", "relational", "hints"])
def test_every_loss_trains_the_student(loss: str) -> None:
    config = with_losses(make_config(epochs=8), loss)
    training_set, new = training_sets(config, 0, 1, count=2000)
    training_set.features = torch.log(training_set.teacher_probs) if loss in ("hints", "relational") else None
    distil(student := fresh(config, training_set), training_set, config.distillation)
    probs = torch.softmax(student(new.x), dim=1).detach()
    assert roc_auc_score(new.labels, probs[:, 1]) > 0.95


def test_joined_training_sets_have_features_where_both_do() -> None:
    first, second = training_sets(make_config(), 0, 1, count=20)
    assert first.append(second).features is None
    first.features = torch.ones(20, 3)
    assert first.append(second).features is None
    second.features = torch.zeros(20, 3)
    together = first.append(second)
    assert len(together) == 40 and together.features.mean(dim=1).tolist() == [1.0] * 20 + [0.0] * 20


def test_hints_from_a_teacher_without_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"losses.0.type: 'hints' needs a teacher that gives features"):
        make_config(losses=[{"type": "hints"}])
    config = with_losses(make_config(), "hints")
    (training_set,) = training_sets(config, 0)
    with pytest.raises(ConfigError, match=r"hints.*features"):
        distil(fresh(config, training_set), training_set, config.distillation)


@pytest.mark.parametrize("loss", ["decoupled", "standardised"])
def test_loss_without_effect_for_two_actions_is_refused(loss: str) -> None:
    with pytest.raises(ValueError, match=f"'{loss}' has nothing to add where there are two actions"):
        make_config(losses=[{"type": "hinton"}, {"type": loss}])


def test_repeated_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="'hinton' is given more than once"):
        make_config(losses=[{"type": "hinton"}, {"type": "hinton"}])


# --------------------------------------------------------------------------- columns, validation days


def test_columns_are_numbers_then_categories_with_values_of_contract_or_rows() -> None:
    rows = pd.DataFrame({"carrier": ["UA", None, "AA", "UA"], "origin": "EWR", "temp": 1.0, "wind": 1.0})
    assert columns_of(make_config(), rows) == [
        {"name": "temp", "type": "number"},
        {"name": "wind", "type": "number"},
        {"name": "origin", "type": "category", "values": ["EWR", "JFK", "LGA"]},
        {"name": "carrier", "type": "category", "values": ["AA", "UA"]},
    ]


def test_a_new_student_reads_these_columns() -> None:
    config = make_config({"bins": 5, "embedding": 1})
    rows, _, _ = make_rows(100, seed=0)
    columns = columns_of(config, rows)
    x = encode(rows, columns)
    student = new_student(config, columns, x)
    assert (student.spec["cardinalities"], student.spec["bins"], student.spec["actions"]) == ([3, 2], 5, 2)
    assert student.edges[1, 0].item() == pytest.approx(rows["wind"].min())
    assert student.edges[1, -1].item() == pytest.approx(rows["wind"].max())
    assert torch.equal(weights(student), weights(new_student(config, columns, x)))


def test_validation_days_are_whole_days_and_stable() -> None:
    times = pd.Series(pd.date_range("2013-01-01", periods=24 * 40, freq="h", tz="UTC"))
    chosen = mask_validation_rows(times, TENTH_DAY)
    days = times[chosen].dt.date.unique()
    assert len(days) == 4
    assert chosen.sum() == 4 * 24
    assert {(datetime(d.year, d.month, d.day, tzinfo=UTC).timestamp() / 86_400) % 10 for d in days} == {0}
    subset = times.sample(200, random_state=0)
    np.testing.assert_array_equal(mask_validation_rows(subset, TENTH_DAY), chosen[subset.index])
    for unit in ("s", "ms", "us", "ns"):
        np.testing.assert_array_equal(mask_validation_rows(times.dt.as_unit(unit), TENTH_DAY), chosen)
    local = times.dt.tz_convert("America/New_York")
    np.testing.assert_array_equal(mask_validation_rows(local, TENTH_DAY), chosen)


def test_newer_half_of_validation_days_is_for_the_controller() -> None:
    times = pd.Series(pd.date_range("2013-01-01", periods=24 * 10, freq="h", tz="UTC"))
    cluster_ids, newer = split_validation(times, timedelta(hours=2))
    np.testing.assert_array_equal(cluster_ids, np.repeat(np.arange(10), 24))
    np.testing.assert_array_equal(newer, cluster_ids >= 5)
    cluster_ids, newer = split_validation(times[:24], timedelta(hours=2))
    np.testing.assert_array_equal(cluster_ids, np.repeat(np.arange(12), 2))
    assert newer.sum() == 12 and not newer[:12].any()
