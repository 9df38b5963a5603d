"""Forgetting and backward transfer on scores computed by hand."""

from __future__ import annotations

import pytest

from benchmarks.forgetting import goals_of, summarize

SCORES = [[0.9], [0.5, 0.8], [0.7, 0.6, 0.9]]


def test_scores_are_summarized_as_in_the_papers() -> None:
    summary = summarize(SCORES, [1.0, 3.0], [10, 20])
    assert summary["quality"] == pytest.approx((0.7 + 0.6 + 0.9) / 3)
    assert summary["quality_on_the_newest"] == pytest.approx((0.8 + 0.9) / 2)
    # after the second phase 0.9 − 0.5; after the third 0.9 − 0.7 and 0.8 − 0.6
    assert summary["forgetting"] == pytest.approx((0.4 + 0.2 + 0.2) / 3)
    assert summary["backward_transfer"] == pytest.approx((0.7 - 0.9 + 0.6 - 0.8) / 2)
    assert (summary["cpu_seconds"], summary["teacher_rows_fitted_anew"]) == (2.0, 15)


def test_goals_are_those_of_the_hardest_data_set() -> None:
    def result_with(forgetting: float) -> dict:
        methods = ("fine-tuning", "replay", "update", "redistil", "redistil warm", "joint")
        figures = {method: {"forgetting": [0.2], "quality": [0.8], "cpu_seconds": [1.0]} for method in methods}
        figures["update"] = {"forgetting": [forgetting], "quality": [0.79], "cpu_seconds": [0.25]}
        return {"figures": figures, "scores": {"update": [SCORES]}}

    goals = {goal.name: goal for goal in goals_of({"easy": result_with(0.02), "hard": result_with(0.1)})}
    assert goals["forgetting_of_fine_tuning"].measured == pytest.approx(0.5)
    assert not goals["forgetting_of_fine_tuning"].met
    assert goals["points_below_joint"].measured == pytest.approx(0.01) and goals["points_below_joint"].met
    assert goals["cpu_vs_redistil"].measured == 4 and goals["cpu_vs_redistil"].met
