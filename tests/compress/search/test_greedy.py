"""The greedy search: what it builds, when it ends, and how it continues after an interruption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.compress.export import run_onnx
from stillhouse.compress.search import candidates, greedy
from stillhouse.compress.search.greedy import search
from stillhouse.compress.search.pareto import hypervolume, normalized_scores, pareto_front
from stillhouse.compress.steps import int8
from stillhouse.compress.target import CompressionTarget
from stillhouse.config import Compression, DynamicInt8, Fp32, PruneUnits, Recipe, Search, StaticInt8, WeightOnly
from stillhouse.errors import ExportError
from stillhouse.latency import measure_latency
from stillhouse.records import CompressionCandidate, Frontier, SizeLimits
from tests.compress.models_for_tests import (
    COLUMNS,
    WITH_VNNI,
    make_graph_target,
    make_tabular_target,
    make_text_target,
    write_model,
)

STRUCTURAL = ("prune_units", "prune_heads", "prune_layers", "prune_columns", "low_rank", "vocabulary", "hashed_rows")
LOOSE = SizeLimits(max_quality_loss=0.1)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies from ten calls each."""
    monkeypatch.setattr(candidates, "measure_latency", partial(measure_latency, calls=10, warm_up=1))
    monkeypatch.setattr(candidates, "measure_cpu_time", lambda call: 0.01)


tabular_once, text_once = cache(make_tabular_target), cache(make_text_target)


def settings(recipes: Sequence[Recipe] | None = None, **of_search: Any) -> Compression:
    search_settings = Search(**{"time": "300s", "candidates": 12, "recover_epochs": 1, "patience": None} | of_search)
    return Compression(
        **({} if recipes is None else {"recipes": recipes}) | {"search": search_settings, "tolerance": 0.2}
    )


def run(
    folder: Path,
    compression: Compression,
    limits: SizeLimits = LOOSE,
    target: Callable[[], CompressionTarget] = tabular_once,
    **options: Any,
) -> Frontier:
    return search(target, compression, limits, write_model, folder, **options)


def names(frontier: Frontier) -> list[str]:
    return [candidate.name for candidate in frontier.candidates]


def unmeasured(frontier: Frontier) -> list[CompressionCandidate]:
    """All of its candidates but for the latencies, which are measured once more at the end."""
    return [candidate.model_copy(update={"latency": None}) for candidate in frontier.candidates]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Frontier]:
    """One search of a tabular student, and its folder."""
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "measure_latency", partial(measure_latency, calls=10, warm_up=1))
        return folder, run(folder, settings())


def test_the_reference_is_built_first_then_the_recipes_then_the_search(finished: tuple[Path, Frontier]) -> None:
    folder, frontier = finished
    assert names(frontier)[:3] == ["fp32", "int8_dynamic", "int8_static"]
    assert frontier.reference == frontier.candidates[0] and frontier.stopped == "12 candidates are made"
    assert 12 <= len(frontier.candidates) <= 13  # a format that loses too much is tried once more, with layers kept
    assert len(set(names(frontier))) == len(frontier.candidates)
    assert any(step["method"] in STRUCTURAL for candidate in frontier.candidates for step in candidate.recipe)
    assert {
        step["recover_epochs"]
        for candidate in frontier.candidates
        for step in candidate.recipe
        if "recover_epochs" in step
    } == {1}
    assert frontier.limits == LOOSE and frontier.sensitivity
    for candidate in frontier.servable:
        assert (Path(candidate.folder) / "model.onnx").exists() and Path(candidate.folder).is_relative_to(folder)


def test_the_result_agrees_with_its_candidates(finished: tuple[Path, Frontier]) -> None:
    _, frontier = finished
    best = pareto_front(frontier.servable)
    assert {candidate.name for candidate in best} <= set(frontier.best) | {candidate.name for candidate in best}
    assert [candidate.name for candidate in pareto_front(map(frontier.named, frontier.best))] == list(frontier.best)
    assert frontier.hypervolume == pytest.approx(
        hypervolume(normalized_scores(frontier.named(n), frontier.reference) for n in frontier.best)
    )
    assert 0 <= frontier.hypervolume < 1  # 0 where all of them were slower than the reference on a busy machine
    chosen = frontier.named(frontier.chosen)
    assert frontier.fits and chosen.quality is not None and frontier.reference.quality is not None
    assert frontier.reference.quality - chosen.quality <= LOOSE.max_quality_loss
    fitting = [
        candidate
        for candidate in frontier.servable
        if frontier.reference.quality - (candidate.quality or 0) <= LOOSE.max_quality_loss
    ]
    assert chosen.bytes == min(candidate.bytes for candidate in fitting)
    assert frontier.why.startswith(f"{frontier.chosen}: the smallest within 10 points: {chosen.bytes:,} bytes")
    assert chosen.bytes < 0.6 * frontier.reference.bytes
    assert Frontier.model_validate_json(frontier.model_dump_json()) == frontier


def test_a_finished_search_is_read_from_its_folder(
    finished: tuple[Path, Frontier], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, frontier = finished

    def fail(*arguments: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(candidates, "build_model", fail)
    monkeypatch.setattr(candidates, "_save", fail)
    again = run(folder, settings())
    assert unmeasured(again) == unmeasured(frontier)
    assert (again.chosen, again.fits, again.stopped) == (frontier.chosen, frontier.fits, frontier.stopped)
    assert again.sensitivity == frontier.sensitivity


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [2, 8])
def test_an_interrupted_search_continues(
    finished: tuple[Path, Frontier], after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are those of the search that was not killed: they steer it, and no two measurements are equal."""
    folder, uninterrupted = finished
    records = (folder / "candidates").glob("*/candidate.json")
    stored = {
        candidate.candidate_id: candidate
        for candidate in (CompressionCandidate.model_validate_json(file.read_bytes()) for file in records)
    }
    built, make, finish = [], candidates.CandidateBuilder.build, candidates.build_model

    def counted(target: Any, recipe: Any, *others: Any) -> Any:
        built.append(recipe)
        return finish(target, recipe, *others)

    def timed(self: Any, recipe: Any) -> CompressionCandidate:
        frontier = make(self, recipe)
        times = {name: getattr(stored[frontier.candidate_id], name) for name in ("latency", "cpu_ms", "seconds")}
        return frontier.model_copy(update=times)

    monkeypatch.setattr(candidates, "build_model", counted)
    monkeypatch.setattr(candidates.CandidateBuilder, "build", timed)
    monkeypatch.setattr(
        candidates.CandidateBuilder,
        "remeasure",
        lambda self, search_settings: {candidate.name: candidate for candidate in search_settings},
    )
    texts: list[str] = []

    def die(candidate: CompressionCandidate) -> None:
        texts.append(candidate.name)
        if len(texts) == after:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, settings(), on_candidate=die)
    assert texts == names(uninterrupted)[:after] and len(built) == after
    reported: list[str] = []
    frontier = run(tmp_path, settings(), on_candidate=lambda candidate: reported.append(candidate.name))
    assert reported == names(frontier) == names(uninterrupted)
    assert len(built) == len(frontier.candidates), "each was made once"
    without = {"latency": None, "folder": ""}
    assert [candidate.model_copy(update=without) for candidate in frontier.candidates] == [
        candidate.model_copy(update=without) for candidate in uninterrupted.candidates
    ]


def test_without_a_search_only_recipes_and_initial_recipes_are_built(tmp_path: Path) -> None:
    recipes: tuple[Recipe, ...] = (
        (DynamicInt8(method="int8_dynamic"),),
        (PruneUnits(method="prune_units", recover_epochs=1),),
    )
    initial_recipes: tuple[Recipe, ...] = ((WeightOnly(method="weights", bits=4),), recipes[0])
    reported: list[str] = []
    compression = Compression(recipes=recipes, search=None)
    frontier = run(
        tmp_path,
        compression,
        initial_recipes=initial_recipes,
        on_candidate=lambda candidate: reported.append(candidate.name),
    )
    assert names(frontier) == reported == ["fp32", "int8_dynamic", "units50", "weights4"]
    assert frontier.stopped == "no search was asked for" and not frontier.sensitivity


@pytest.mark.parametrize(
    ("limit", "stopped"), [({"time": "0.1s"}, "the time is over (0.1 s)"), ({"candidates": 1}, "1 candidates are made")]
)
def test_recipes_and_the_first_initial_recipe_are_built_despite_the_limits(
    limit: dict[str, Any], stopped: str, tmp_path: Path
) -> None:
    initial_recipes: tuple[Recipe, ...] = (
        (PruneUnits(method="prune_units", ratio=0.3, recover_epochs=1), StaticInt8(method="int8_static")),
    )
    frontier = run(tmp_path, settings(**limit), initial_recipes=initial_recipes)
    assert names(frontier) == ["fp32", "int8_dynamic", "int8_static", "units30+int8_static"]
    assert frontier.stopped == stopped


def test_the_search_ends_when_patience_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "_MIN_PROGRESS", 1.0)  # nothing adds that much
    steps = {"steps": ("prune_units", "prune_columns"), "candidates": 40}
    frontier = run(tmp_path, settings([(Fp32(method="fp32"),)], patience=2, **steps))
    assert frontier.stopped == "2 candidates in a row have added nothing" and len(frontier.candidates) == 3


def test_the_search_starts_from_the_first_initial_recipe(tmp_path: Path) -> None:
    first = PruneUnits(method="prune_units", ratio=0.3, recover_epochs=1)
    initial_recipes: tuple[Recipe, ...] = (
        (first, StaticInt8(method="int8_static")),
        (WeightOnly(method="weights", bits=4),),
    )
    of_search = settings([(Fp32(method="fp32"),)], steps=("prune_columns",), candidates=4)
    frontier = run(tmp_path, of_search, SizeLimits(max_quality_loss=1.0), initial_recipes=initial_recipes)
    assert names(frontier)[:3] == ["fp32", "units30+int8_static", "weights4"]
    assert frontier.candidates[3].recipe[0] == frontier.candidates[1].recipe[0]
    assert [step["method"] for step in frontier.candidates[3].recipe] == ["prune_units", "prune_columns", "fp32"]
    no_more = run(tmp_path / "few", settings([(Fp32(method="fp32"),)], candidates=2), initial_recipes=initial_recipes)
    assert names(no_more) == ["fp32", "units30+int8_static"] and no_more.stopped == "2 candidates are made"


def test_only_allowed_steps_are_tried(tmp_path: Path) -> None:
    frontier = run(tmp_path, settings([(Fp32(method="fp32"),)], steps=("low_rank", "weights"), candidates=8))
    methods = {step["method"] for candidate in frontier.candidates for step in candidate.recipe}
    assert methods == {"fp32", "low_rank", "weights"}
    only = run(tmp_path / "formats", settings([(Fp32(method="fp32"),)], steps=("int8_static",)))
    assert names(only) == ["fp32", "int8_static"] and only.stopped == "nothing left to try"


def test_only_number_formats_are_tried_on_a_graph(tmp_path: Path) -> None:
    frontier = run(tmp_path, settings(candidates=40), target=make_graph_target)
    assert frontier.stopped == "nothing left to try"
    assert names(frontier)[:3] == ["fp32", "int8_dynamic", "int8_static"]
    bits = {
        (candidate.recipe[0]["method"], candidate.recipe[0].get("bits"), candidate.recipe[0].get("table_bits"))
        for candidate in frontier.candidates
    }
    assert bits == {
        ("fp32", None, None),
        ("int8_dynamic", None, 8),
        ("int8_dynamic", None, 4),
        ("int8_static", None, 8),
        ("weights", 8, None),
        ("weights", 4, None),
    }
    assert not any(step["method"] in STRUCTURAL for candidate in frontier.candidates for step in candidate.recipe)


def test_if_nothing_fits_the_needed_limits_are_named(tmp_path: Path) -> None:
    frontier = run(tmp_path, settings(candidates=1), SizeLimits(max_bytes=100, max_quality_loss=0.1))
    assert not frontier.fits and frontier.why.startswith("nothing fits: it would take a max_bytes of ")
    smallest = min(frontier.servable, key=lambda candidate: candidate.bytes)
    assert (
        f"max_bytes of {smallest.bytes:,}, not 100 ({smallest.name})" in frontier.why
        and frontier.chosen == smallest.name
    )


def test_a_format_with_too_large_a_loss_is_tried_with_sensitive_layers_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where quality falls with every change of an answer, and none is allowed."""
    monkeypatch.setattr(int8, "processor", lambda: WITH_VNNI)  # so that all weights have eight bits
    target = tabular_once()
    expected = run_onnx(target.model, target.validation(COLUMNS))
    strict = replace(target, quality=lambda p: 1 - float(np.abs(p - expected).mean()))
    compression = settings([(Fp32(method="fp32"),)], steps=("int8_dynamic",))
    frontier = run(tmp_path, compression, SizeLimits(max_quality_loss=0), lambda: strict)
    plain = frontier.named("int8_dynamic")
    assert plain.quality is not None and plain.quality < 1
    mixed = [candidate for candidate in frontier.candidates if any(step.get("keep") for step in candidate.recipe)]
    assert [candidate.recipe[0]["table_bits"] for candidate in mixed] == [8, 4]
    (stored,) = mixed[0].recipe[0]["keep"]  # a quarter of four layers
    changes = {candidate.layer: candidate.difference for candidate in frontier.sensitivity[:4]}
    assert {candidate.step for candidate in frontier.sensitivity} == {"int8_dynamic"} and len(changes) == 4
    assert stored == max(changes, key=lambda layer: changes[layer])
    assert mixed[0].bytes > plain.bytes and mixed[0].difference is not None and plain.difference is not None
    assert mixed[0].difference < plain.difference


def test_a_model_that_cannot_serve_as_it_is_is_an_error(tmp_path: Path) -> None:
    def refuse(*arguments: Any) -> None:
        raise ExportError("no room")

    with pytest.raises(ExportError, match="cannot serve as it is: no room"):
        search(tabular_once, settings(), LOOSE, refuse, tmp_path)


@pytest.mark.parametrize("steps", [("prune_heads", "prune_layers"), ("vocabulary", "prune_units", "int8_dynamic")])
def test_a_transformer_for_texts(steps: tuple[str, ...], tmp_path: Path) -> None:
    frontier = run(
        tmp_path,
        settings([(Fp32(method="fp32"),)], steps=steps, candidates=6),
        SizeLimits(max_quality_loss=0.3),
        text_once,
    )
    methods = {step["method"] for candidate in frontier.candidates for step in candidate.recipe}
    assert {"fp32"} < methods <= {"fp32", *steps} and not {candidate.refused for candidate in frontier.candidates} - {
        None
    }
    assert frontier.named(frontier.chosen).bytes < frontier.reference.bytes and frontier.fits


@pytest.mark.parametrize("method", ["prune_units", "low_rank"])
def test_a_more_sensitive_layer_gets_a_smaller_ratio(method: str, tmp_path: Path) -> None:
    frontier = run(tmp_path, settings([(Fp32(method="fp32"),)], steps=(method,), candidates=2))
    (step,) = frontier.candidates[1].recipe[:1] if frontier.candidates[1].recipe[0]["method"] == method else ()
    ratios = step["ratios"]
    changes = {
        candidate.layer: candidate.difference
        for candidate in frontier.sensitivity
        if candidate.step == method and candidate.layer
    }
    assert set(ratios) == set(changes) and len(changes) == 2
    calm, touchy = sorted(changes, key=lambda layer: changes[layer])
    assert (ratios[calm], ratios[touchy]) == (0.75, 0.25)


@pytest.mark.slow
def test_workers_give_the_same_candidates_as_one_process(tmp_path: Path) -> None:
    steps = ("prune_units", "low_rank", "int8_dynamic")
    frontier = [
        run(
            tmp_path / str(parallel), settings(parallel=parallel, steps=steps, candidates=6), target=make_tabular_target
        )
        for parallel in (1, 2)
    ]
    serial_ids, parallel_ids = (
        {candidate.name: candidate.candidate_id for candidate in search_result.candidates} for search_result in frontier
    )
    shared = set(serial_ids) & set(parallel_ids)
    assert len(shared) >= 5
    for name in shared:
        first, second = frontier[0].named(name), frontier[1].named(name)
        assert (serial_ids[name], first.bytes, first.quality) == (parallel_ids[name], second.bytes, second.quality)
    assert len(list((tmp_path / "2" / "forms").iterdir())) >= len(list((tmp_path / "1" / "forms").iterdir()))
