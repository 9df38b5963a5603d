"""The scores of a block: by hand, unknown actions, useless answers, and the key of the rows."""

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from stillhouse.payoff.scores import score_block
from stillhouse.records import BlockScore

START = datetime(2026, 1, 5, tzinfo=UTC)
DAY = timedelta(days=1)


def score(probs: list[list[float]], labels: list[int], ids: list[str] | None = None, **more: float) -> BlockScore:
    return score_block(
        "toy@1",
        np.array(probs),
        np.array(labels),
        ids or [str(number) for number in range(len(labels))],
        START,
        START + DAY,
        complete=True,
        clip=0.01,
        **more,
    )


def test_three_actions_by_hand() -> None:
    block = score([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]], [0, 1])
    assert block.log_loss == pytest.approx((-math.log(0.7) - math.log(0.01)) / 2)
    assert block.half_brier == pytest.approx((0.5 * (0.09 + 0.04 + 0.01) + 1.0) / 2)
    assert (block.accuracy, block.rows, block.probs, block.labels, block.score) == (0.5, 2, (), (), None)


def test_two_actions_keep_their_rows_rounded_to_float32() -> None:
    block = score([[0.9, 0.1], [0.3, 0.7]], [0, 1], own=2.5)
    assert block.probs == tuple(np.array([0.1, 0.7], dtype=np.float32).tolist())
    assert (block.labels, block.score) == ((0, 1), 2.5)


def test_an_unknown_action_gets_the_clip_probability() -> None:
    block = score([[0.5, 0.5]], [2])
    assert block.log_loss == pytest.approx(math.log(100))
    assert (block.half_brier, block.accuracy, block.probs) == (0.75, 0.0, ())


@pytest.mark.parametrize("label", [0, 1])
def test_an_answer_that_is_not_finite_is_wrong(label: int) -> None:
    block = score([[math.nan, 0.5]], [label])
    assert (block.log_loss, block.half_brier, block.accuracy) == (pytest.approx(math.log(100)), 1.0, 0.0)


def test_the_key_depends_on_the_rows_and_their_order_only() -> None:
    one = score([[0.9, 0.1], [0.3, 0.7]], [0, 1], ["a", "b"])
    same = score([[0.5, 0.5], [0.5, 0.5]], [0, 1], ["a", "b"])
    turned = score([[0.9, 0.1], [0.3, 0.7]], [0, 1], ["b", "a"])
    joined = score([[0.9, 0.1], [0.3, 0.7]], [0, 1], ["ab", ""])
    assert one.rows_key == same.rows_key
    assert len({one.rows_key, turned.rows_key, joined.rows_key}) == 3


def test_blocks_without_rows_or_with_missing_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="needs rows"):
        score_block("toy@1", np.zeros((0, 2)), np.zeros(0), [], START, START + DAY, complete=True, clip=0.01)
    with pytest.raises(ValueError, match=r"ids \(1\) as labels \(2\)"):
        score([[0.9, 0.1], [0.3, 0.7]], [0, 1], ["a"])
