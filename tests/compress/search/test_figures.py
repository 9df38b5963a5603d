"""The table, the figure and the metrics of a search."""

from __future__ import annotations

import json
import re
from io import BytesIO
from typing import Any

import pytest

from stillhouse.compress.search.figures import candidate_metrics, draw_frontier, format_frontier_page, tabulate_frontier
from stillhouse.compress.search.pareto import choose_candidate, pareto_front
from stillhouse.records import CompressionCandidate, Frontier, Latency, Saturation, SizeLimits
from tests.compress.search.test_pareto import candidate, refused


def make_frontier(*candidates: CompressionCandidate, **limits: Any) -> Frontier:
    best = pareto_front(candidates)
    chosen, fits, why = choose_candidate(candidates, candidates[0], SizeLimits(**limits))
    return Frontier(
        reference=candidates[0],
        candidates=candidates,
        best=tuple(entry.name for entry in best),
        hypervolume=0.5,
        chosen=chosen.name,
        fits=fits,
        why=why,
        limits=SizeLimits(**limits),
        stopped="nothing left to try",
    )


MADE = (
    candidate("fp32", 0.8, 1000, 1.0),
    candidate("worse", 0.79, 1000, 1.0),
    refused("broken"),
    candidate("int8", 0.797, 300, 0.5, seconds=2.0, cpu_ms=0.4),
    candidate("tiny", 0.7, 100, 0.1),
)


def test_the_table_begins_with_the_pareto_front_smallest_first() -> None:
    table = tabulate_frontier(make_frontier(*MADE))
    assert list(table) == [
        "candidate",
        "",
        "quality",
        "loss",
        "bytes",
        "p50_ms",
        "p95_ms",
        "cpu_ms",
        "seconds",
        "refused",
    ]
    assert table["candidate"] == ["tiny", "int8", "fp32", "worse", "broken"]
    assert table[""] == ["best", "chosen", "best", "", ""]
    assert table["quality"] == [0.7, 0.797, 0.8, 0.79, None]
    assert table["loss"] == [pytest.approx(0.1), pytest.approx(0.003), 0, pytest.approx(0.01), None]
    assert table["bytes"] == [100, 300, 1000, 1000, None]
    assert table["p50_ms"] == [0.1, 0.5, 1.0, 1.0, None] and table["p95_ms"] == [0.2, 1.0, 2.0, 2.0, None]
    assert table["cpu_ms"] == [None, 0.4, None, None, None]
    assert table["seconds"][1] == 2.0 and table["refused"] == ["", "", "", "", "it does not apply"]


def test_a_chosen_candidate_outside_the_front_is_marked() -> None:
    twin = candidate("twin", 0.8, 1000, 1.0)
    frontier_of_two = make_frontier(twin, candidate("a", 0.8, 1000, 1.0, p95=1.0))
    assert frontier_of_two.chosen == "a" and frontier_of_two.best == ("twin",)
    assert tabulate_frontier(frontier_of_two)[""] == ["best", "chosen"]


@pytest.mark.parametrize(
    "limits", [{}, {"max_bytes": 400}, {"max_bytes": 10, "max_p95_ms": 0.01}, {"max_quality_loss": 0}]
)
@pytest.mark.parametrize("entries", [MADE, MADE[:1], (MADE[0], refused("broken"))], ids=["many", "alone", "refused"])
def test_the_figure_is_drawn_for_any_result(limits: dict[str, Any], entries: tuple[CompressionCandidate, ...]) -> None:
    search = make_frontier(*entries, **limits)
    figure = draw_frontier(search)
    axes, written = figure.axes[0], BytesIO()
    figure.savefig(written)
    assert written.getvalue().startswith(b"\x89PNG")
    assert figure.get_suptitle().replace("\n", " ") == f"large: the Pareto front; ringed: {search.why}"
    servable, chosen = search.servable, search.named(search.chosen)
    assert sorted(map(tuple, axes.collections[0].get_offsets())) == sorted(
        (entry.bytes, entry.quality) for entry in servable
    )
    assert [tuple(point) for point in axes.collections[1].get_offsets()] == [(chosen.bytes, chosen.quality)]
    texts = {text.get_text() for text in axes.texts}
    assert texts == {"max_quality_loss", *search.best, search.chosen} | (
        {"max_bytes"} if "max_bytes" in limits else set()
    )


def test_the_page_is_whole_and_text_in_it_is_data() -> None:
    evil = candidate("</script><b>{{data}}&", 0.797, 300, 0.5)
    search = make_frontier(MADE[0], evil, refused("<i>broken</i>")).model_copy(update={"why": "<u>why</u>"})
    page = format_frontier_page(search)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<b>|<i>|<u>", page)
    assert page.count("</script>") == 2 and page.rstrip().endswith("</html>")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [row["candidate"] for row in data["rows"]] == tabulate_frontier(search)["candidate"]
    assert data["rows"][0]["standing"] == "chosen" and data["reference"] == 0.8
    assert page.count("<tr>") == 1 + len(search.candidates)


def test_a_latency_of_zero_is_drawn() -> None:
    draw_frontier(make_frontier(candidate("fp32"), candidate("int8", p50=0.0))).savefig(BytesIO())


def test_candidates_far_below_the_limit_are_cut_off() -> None:
    axes = draw_frontier(make_frontier(candidate("fp32", 0.8), candidate("bad", 0.1, 500))).axes[0]
    low, high = axes.get_ylim()
    assert 0.1 < low < 0.795 and high > 0.8


def test_metrics_for_mlflow() -> None:
    layer = Saturation(layer="l", share=0.1)
    int8 = candidate("int8", 0.7, 10, 0.5, difference=0.01, seconds=2.0, cpu_ms=0.4, saturates=(layer, layer))
    assert candidate_metrics(int8) == {
        "compression/quality": 0.7,
        "compression/difference": 0.01,
        "compression/cpu_ms": 0.4,
        "compression/seconds": 2.0,
        "compression/saturating_layers": 2.0,
        "compression/p50_ms": 0.5,
        "compression/p95_ms": 1.0,
    }
    bare = int8.model_copy(update={"latency": None, "cpu_ms": None})
    assert "compression/p50_ms" not in candidate_metrics(bare) and "compression/cpu_ms" not in candidate_metrics(bare)
    assert str(int8) == "int8: 10 bytes, p50 0.5 ms, quality 0.7000"
    assert str(refused("broken")) == "broken: refused: it does not apply"
    assert Latency(p50_ms=0.5, p95_ms=1.0, calls=10) == int8.latency
