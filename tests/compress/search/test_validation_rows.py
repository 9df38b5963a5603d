"""New actions are not forgotten by compression: which rows candidates are measured on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from stillhouse.compress.search import candidates
from stillhouse.compress.search.greedy import search
from stillhouse.compress.search.validation_rows import find_new_actions, select_validation_rows
from stillhouse.compress.target import CompressionTarget
from stillhouse.compress.variants import target_from_student
from stillhouse.config import BagEncoder, Compression, Fp32, Recipe, Vocabulary
from stillhouse.distill.students import TextStudent
from stillhouse.distill.vocabulary import grow_vocabulary
from stillhouse.latency import measure_latency
from stillhouse.records import CompressionCandidate, Frontier, Latency, SizeLimits
from stillhouse.variant import encode
from tests.compress.models_for_tests import write_model

ACTIONS = ("greet", "book", "refund")
WORDS = {
    "greet": ["hello", "morning", "howdy", "welcome"],
    "book": ["table", "seat", "ticket", "room"],
    "refund": ["zyxwq", "qxzvy"],
}
START = np.datetime64("2024-01-01", "us")
DAY = np.timedelta64(1, "D")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "measure_latency", partial(measure_latency, calls=10, warm_up=1))
    monkeypatch.setattr(candidates, "measure_cpu_time", lambda call: 0.01)


def sentences(count: int, seed: int, late: int) -> tuple[pd.DataFrame, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Sentences over 40 days; of the last two days ``late`` ask for a refund, in words that nobody used before."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, count)
    times = START + np.sort(draw.integers(0, 40 * 24, count)) * np.timedelta64(1, "h")
    labels[len(labels) - late :] = 2
    times[len(times) - late :] = START + 39 * DAY
    texts = [" ".join(draw.choice(WORDS[ACTIONS[label]], 2)) for label in labels]
    return pd.DataFrame({"probs": texts}), labels, times


@pytest.fixture(scope="module")
def agent() -> Callable[[bool], CompressionTarget]:
    """A small text student that knows all three actions; whether what is new must hold is the argument."""
    rows, labels, times = sentences(600, 0, 16)
    validation_rows, validation_labels, validation_times = sentences(
        200, 1, 1
    )  # the validation days: one row of the new action
    columns = [{"name": "probs", "type": "text", "length": 24, "tokens": grow_vocabulary(rows["probs"], 120)}]
    torch.manual_seed(0)
    encoder = BagEncoder(type="bag", width=16, bigrams=0)
    student = TextStudent(torch.zeros(0, 5), (), [(len(columns[0]["tokens"]), 24)], encoder, 3, (16,))
    x, y = torch.from_numpy(encode(rows, columns)), torch.from_numpy(labels)
    optimiser = torch.optim.Adam(student.parameters(), lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(student(x), y).backward()
        optimiser.step()
    student.eval()
    new = find_new_actions(np.concatenate([validation_times, times]), np.concatenate([validation_labels, labels]), None)
    validation = select_validation_rows(validation_times, validation_labels, times, labels, new, ACTIONS)
    rows_with_added = pd.concat([validation_rows, rows.iloc[validation.training_index]], ignore_index=True)

    def score(probs: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
        return float((probs.argmax(axis=1) == labels).mean())

    def target(holds: bool) -> CompressionTarget:
        return target_from_student(
            student,
            columns,
            ACTIONS,
            calibration=lambda c: encode(rows, c),
            validation=lambda c: encode(rows_with_added, c),
            quality=validation.make_quality(score),
            slices=validation.make_slices(score) if holds else lambda probs: {},
            content_hash=f"late {holds}",
        )

    return target


def compressed(target: CompressionTarget, folder: Path) -> Frontier:
    cut: Recipe = (Vocabulary(method="vocabulary", ratio=0.5, recover_epochs=0), Fp32(method="fp32"))
    settings = Compression(recipes=((Fp32(method="fp32"),), cut), search=None)
    return search(lambda: target, settings, SizeLimits(max_quality_loss=0.01), write_model, folder)


def test_compression_does_not_forget_a_new_action(agent: Callable[[bool], CompressionTarget], tmp_path: Path) -> None:
    """Measured on the validation days only, the state without the new words is chosen; with the slices it is not."""
    blind, result = compressed(agent(False), tmp_path / "blind"), compressed(agent(True), tmp_path / "seeing")
    small = next(candidate.name for candidate in result.candidates if candidate.name != "fp32")
    assert blind.chosen == small and blind.fits
    assert result.reference.slices["new actions"] == 1.0
    assert result.named(small).slices["new actions"] < 0.5
    assert result.chosen == "fp32" and result.fits
    loss, where = result.named(small).loss(result.reference)
    assert loss > 0.5 and where == "new actions"


# --------------------------------------------------------------------------- new actions and validation rows

TIMES = START + np.arange(100) * DAY


def test_an_action_that_occurs_only_after_the_champions_window_is_new() -> None:
    labels = np.repeat([0, 1], 50)
    labels[97:] = 2
    assert find_new_actions(TIMES, labels, START + 90 * DAY) == [2]
    assert find_new_actions(TIMES, labels, START + 90 * DAY, unknown=[1]) == [1, 2]
    assert find_new_actions(TIMES, labels, START + 99 * DAY) == []  # it was there a day before
    stray = np.where(np.arange(100) >= 89, 2, labels)
    stray[3] = 2  # one old row of twelve is labelled wrongly
    assert find_new_actions(TIMES, stray, START + 89 * DAY) == [2]
    stray[4] = 2
    assert find_new_actions(TIMES, stray, START + 89 * DAY) == []
    assert find_new_actions(TIMES, np.where(labels == 2, -1, labels), START + 90 * DAY) == []


def test_without_a_champion_an_action_of_the_newer_half_is_new_if_frequent() -> None:
    labels = np.zeros(100, dtype=int)
    labels[88:] = 2
    labels[95] = 1
    assert find_new_actions(TIMES, labels, None) == [2]
    assert find_new_actions(TIMES, labels, START) == [
        2
    ]  # a champion older than all rows says nothing about any of them
    assert find_new_actions(TIMES[:0], labels[:0], None) == []


def test_training_rows_are_added_where_a_new_action_has_few_validation_rows() -> None:
    labels, learned = np.repeat([0, 1], 50), np.repeat([0, 1, 2, 3], [100, 100, 30, 300])
    labels[90:] = 3
    learned_times = START + np.arange(530) * DAY
    result = select_validation_rows(TIMES, labels, learned_times, learned, [2, 3], ("a", "b", "c", "d"))
    assert set(learned[result.training_index]) == {2, 3} and (learned[result.training_index] == 3).sum() == 200
    assert len(result.slice_index["new actions"]) == 10 + 30 + 200
    assert set(result.slice_index) == {"new actions", "the new action c", "the new action d"}
    right = np.eye(4)[result.labels]
    assert result.make_quality(lambda probs, validation_labels: float(len(validation_labels)))(right) == 100
    assert set(result.make_slices(lambda probs, validation_labels: 1.0)(right).values()) == {1.0}


def test_the_newest_validation_rows_are_a_slice_of_their_own() -> None:
    times, labels = START + np.arange(800)[::-1] * DAY, np.arange(800) % 2
    result = select_validation_rows(times, labels, times, labels, [], ("a", "b"))
    assert sorted(result.slice_index["the newest rows"]) == list(range(200)) and not len(result.training_index)


def test_the_largest_loss_and_its_slice() -> None:
    latency = Latency(p50_ms=1.0, p95_ms=1.0, calls=1)
    common: dict[str, Any] = {"candidate_id": "x", "recipe": (), "latency": latency, "bytes": 10}
    reference = CompressionCandidate(name="fp32", quality=0.9, slices={"new actions": 0.8}, **common)
    assert CompressionCandidate(name="a", quality=0.89, slices={"new actions": 0.7}, **common).loss(reference) == (
        pytest.approx(0.1),
        "new actions",
    )
    assert CompressionCandidate(name="b", quality=0.85, slices={"new actions": 0.8}, **common).loss(reference)[1] == ""
