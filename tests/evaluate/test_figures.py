"""Figures show the right values and can be rendered."""

from __future__ import annotations

import io
from datetime import timedelta
from itertools import combinations
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from stillhouse.evaluate.figures import plot_teacher_weights, plot_tradeoff
from stillhouse.records import (
    Disagreement,
    Proof,
    Scorecard,
    WeightChange,
)


def draw(figure: Figure) -> None:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    assert stream.getvalue()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(stream.getvalue()) > 5000


def texts_overlap(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of captions in the axes that overlap."""
    figure.draw_without_rendering()
    boxes = [(text.get_text(), Text.get_window_extent(text)) for axes in figure.axes for text in axes.texts]
    return [(a, b) for (a, box_a), (b, box_b) in combinations(boxes, 2) if box_a.overlaps(box_b)]


@pytest.fixture
def proof(make: Any) -> Proof:
    def card(model: str, size: int, auc: float, ms: float | None, role: str = "variant") -> Scorecard:
        return make.card(model, size, auc, auc, ms and 2 * ms, role=role)

    variants = (
        card("fp32", 61_824, 0.7133, 0.021),
        card("int8_dynamic", 27_411, 0.7129, 0.034),
        card("int8_static", 29_902, 0.7121, 0.038),
        card("pruned_50", 24_100, 0.7119, 0.019),
    )
    return Proof(
        teacher=card("teacher", 812_000, 0.7152, 1.9, "teacher"),
        student=card("student", 58_210, 0.7133, None, "student"),
        variants=variants,
        champion=card("flights@3", 27_409, 0.7080, 0.033, "champion"),
        chosen="int8_dynamic",
        why="int8_dynamic: the smallest (27411 bytes) within 0.0005 of the best on the validation days",
        disagreement=Disagreement(rows=9, rate=0, total_variation=0),
        certificate=make.certificate(),
    )


def test_every_model_is_shown_at_its_size_and_score(proof: Proof) -> None:
    figure = plot_tradeoff(proof)
    (axes,) = figure.axes
    shown = {tuple(point) for points in axes.collections for point in points.get_offsets().tolist()}
    cards = (proof.teacher, proof.student, *proof.variants, proof.champion)
    assert shown == {(card.bytes, card.test.auc) for card in cards}
    assert [text.get_text().split(",")[0] for text in axes.texts] == [card.model for card in cards]
    assert axes.get_xscale() == "log"
    assert proof.why in figure.get_suptitle().replace("\n", " ")
    assert figure.legends[0].get_texts()[-1].get_text() == "chosen"
    draw(figure)


def test_captions_do_not_cover_one_another(proof: Proof) -> None:
    figure = plot_tradeoff(proof)
    assert texts_overlap(figure) == []
    frame = figure.axes[0].get_window_extent()
    assert all(frame.x0 <= Text.get_window_extent(text).x0 for text in figure.axes[0].texts)
    assert all(Text.get_window_extent(text).x1 <= frame.x1 for text in figure.axes[0].texts)


def test_a_first_refresh_has_no_champion_and_perhaps_no_auc(proof: Proof, make: Any) -> None:
    lone = make.card("fp32", test=None)
    figure = plot_tradeoff(
        proof.model_copy(
            update={"champion": None, "teacher": lone, "student": lone, "variants": (lone,), "chosen": "fp32"}
        )
    )
    assert figure.axes[0].get_ylabel() == "accuracy on the test window"
    draw(figure)


def test_teacher_weights_show_every_change(make: Any) -> None:
    def change(days: int, teacher: str, after: float, **more: Any) -> WeightChange:
        defaults = {"slice": "", "before": 0.5, "by": "outcomes", "version": "v", "job": "watch", "reason": "lost more"}
        when = make.certificate().as_of + timedelta(days=days)
        return WeightChange.model_validate(defaults | {"teacher": teacher, "after": after, "as_of": when} | more)

    changes = [
        change(0, "a", 0.7, job="r1"),
        change(0, "b", 0.3, job="r1"),
        change(2, "a", 0.4),
        change(2, "b", 0.6),
        change(2, "b", 0.9, slice="place=north"),
    ]
    figure = plot_teacher_weights(changes)
    draw(figure)
    lines = [line for line in figure.axes[0].lines if not str(line.get_label()).startswith("_")]
    assert {line.get_label(): list(line.get_ydata()) for line in lines} == {
        "a": [0.5, 0.7, 0.4],
        "b": [0.5, 0.3, 0.6],
    }
    draw(plot_teacher_weights([]))
