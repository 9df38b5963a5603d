"""A candidate is built once; afterwards any process reads it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import stillhouse
from stillhouse.compress import build
from stillhouse.compress.export import run_onnx
from stillhouse.compress.search import candidates
from stillhouse.compress.search.candidates import CandidateBuilder, single_row_call
from stillhouse.compress.target import CompressionTarget, ModelState
from stillhouse.config import DynamicInt8, Fp32, LowRank, PruneHeads, PruneUnits, Step
from stillhouse.errors import ExportError
from stillhouse.latency import measure_latency
from stillhouse.records import CompressionCandidate, Latency
from tests.compress.models_for_tests import COLUMNS, WITH_VNNI, make_graph_target, make_tabular_target, write_model

FP32, DYNAMIC = Fp32(method="fp32"), DynamicInt8(method="int8_dynamic")
UNITS = PruneUnits(method="prune_units", ratio=0.5, recover_epochs=3)
RANK = LowRank(method="low_rank", ratio=0.5, recover_epochs=2)
HEADS = PruneHeads(method="prune_heads")


@pytest.fixture(scope="module")
def target() -> CompressionTarget:
    return make_tabular_target()


class Counting:
    """Counts what is made, quickly: latencies are not measured but said."""

    def __init__(self, target: CompressionTarget, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self.recovered: list[int] = []
        self.finished: list[str] = []
        build_model, apply_step = candidates.build_model, candidates.apply_step

        def count_build(target: CompressionTarget, recipe: Any, *others: Any) -> Any:
            self.finished.append(recipe[-1].method)
            return build_model(target, recipe, *others)

        def count_step(step: Any, *others: Any) -> Any:
            self.steps.append(step.method)
            return apply_step(step, *others)

        def recover(state: ModelState, epochs: int) -> ModelState:
            self.recovered.append(epochs)
            assert target.recover is not None
            return target.recover(state, epochs)

        monkeypatch.setattr(candidates, "build_model", count_build)
        monkeypatch.setattr(candidates, "apply_step", count_step)
        monkeypatch.setattr(candidates, "_MAX_LATENCY_SECONDS", 0.01)
        self.target, self.folder = replace(target, recover=recover), folder

    def builder(self, **changes: Any) -> CandidateBuilder:
        return CandidateBuilder(replace(self.target, **changes), write_model, self.folder, 0.05)


@pytest.fixture
def counting(target: CompressionTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(target, tmp_path, monkeypatch)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_candidate_is_a_folder_with_its_artifact_and_its_record(
    counting: Counting, target: CompressionTarget
) -> None:
    candidate = counting.builder().build((UNITS, DYNAMIC))
    candidate_folder = counting.folder / "candidates" / candidate.candidate_id
    assert sorted(contents(candidate_folder)) == ["artifact/model.onnx", "candidate.json", "columns.json"]
    assert CompressionCandidate.model_validate_json((candidate_folder / "candidate.json").read_text()) == candidate
    assert (candidate.name, candidate.folder, candidate.refused) == (
        "units50+int8_dynamic",
        str(candidate_folder / "artifact"),
        None,
    )
    assert [step["method"] for step in candidate.recipe] == ["prune_units", "int8_dynamic"]
    assert candidate.bytes == (candidate_folder / "artifact" / "model.onnx").stat().st_size
    assert json.loads((candidate_folder / "columns.json").read_text()) == COLUMNS
    model = onnx.load(candidate_folder / "artifact" / "model.onnx")
    assert candidate.quality == target.quality(run_onnx(model, target.validation(COLUMNS)))
    expected = run_onnx(target.model, target.calibration(COLUMNS))
    actual = run_onnx(model, target.calibration(COLUMNS))
    assert candidate.difference == pytest.approx(float(np.abs(actual - expected).mean()), abs=1e-6)
    assert (
        candidate.latency is not None
        and candidate.latency.calls >= 10
        and candidate.cpu_ms is not None
        and candidate.seconds > 0
    )
    assert not list((counting.folder / "aside").iterdir())


def test_a_stored_candidate_is_read_by_any_builder(counting: Counting) -> None:
    first = counting.builder()
    candidates = [first.build(recipe) for recipe in ((FP32,), (DYNAMIC,), (UNITS, DYNAMIC))]
    before = contents(counting.folder)
    done = (list(counting.steps), list(counting.finished), list(counting.recovered))
    assert done == (["prune_units"], ["fp32", "int8_dynamic", "int8_dynamic"], [3])
    for builder in (first, counting.builder()):
        assert [builder.build(recipe) for recipe in ((FP32,), (DYNAMIC,), (UNITS, DYNAMIC))] == candidates
    assert (counting.steps, counting.finished, counting.recovered) == done
    assert contents(counting.folder) == before


def test_a_state_is_recovered_once_and_read_afterwards(counting: Counting) -> None:
    first = counting.builder()
    for last in (FP32, DYNAMIC):
        first.build((UNITS, RANK, last))
    assert counting.steps == ["prune_units", "low_rank"] and counting.recovered == [3, 2]
    assert len(list((counting.folder / "forms").iterdir())) == 2
    second = counting.builder()
    state, expected = second.state((UNITS, RANK)), first.state((UNITS, RANK))
    assert counting.recovered == [3, 2] and counting.steps == ["prune_units", "low_rank"] * 2
    assert state is not None and expected is not None
    weights = expected.module.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in state.module.state_dict().items())
    shutil.rmtree(counting.folder / "candidates")
    assert second.build((UNITS, RANK, DYNAMIC)).refused is None and counting.recovered == [3, 2]


def test_few_states_are_cached_and_the_others_are_restored_from_stored_weights(counting: Counting) -> None:
    builder = counting.builder()
    steps = [PruneUnits(method="prune_units", ratio=ratio, recover_epochs=1) for ratio in (0.1, 0.2, 0.3, 0.4, 0.5)]
    shapes = [builder.state((step,)).module.layers[0].out_features for step in steps]  # type: ignore[union-attr,index]
    assert shapes == [43, 38, 34, 29, 24] and len(builder._states) == 3
    assert builder.state((steps[0],)).module.layers[0].out_features == 43  # type: ignore[union-attr,index]
    assert counting.recovered == [1] * 5 and len(counting.steps) == 6


def test_without_epochs_or_a_recover_function_nothing_is_recovered(counting: Counting) -> None:
    bare = UNITS.model_copy(update={"recover_epochs": 0})
    assert counting.builder().build((bare, FP32)).refused is None
    assert counting.builder(recover=None).build((UNITS, FP32)).refused is None
    assert not counting.recovered and not (counting.folder / "forms").exists()


def test_a_candidate_that_a_killed_process_left_incomplete_is_built_again(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(folder: Path, model: onnx.ModelProto, built: Any) -> None:
        (folder / "model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    builder = counting.builder()
    builder.write_artifact = die
    with pytest.raises(KeyboardInterrupt):
        builder.build((UNITS, DYNAMIC))
    (half,) = (counting.folder / "aside").iterdir()
    assert (half / "artifact" / "model.onnx").read_bytes() == b"half"
    assert not (counting.folder / "candidates").exists()
    (half / "artifact" / "debris").mkdir()
    candidate = counting.builder().build((UNITS, DYNAMIC))
    assert candidate.candidate_id == half.name and candidate.refused is None and counting.recovered == [3]
    assert sorted(contents(Path(candidate.folder))) == ["model.onnx"]
    assert not list((counting.folder / "aside").iterdir())


def test_a_killed_recovery_leaves_no_weights(counting: Counting) -> None:
    def die(state: ModelState, epochs: int) -> ModelState:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        counting.builder(recover=die).build((UNITS, FP32))
    assert not (counting.folder / "forms").exists()
    assert counting.builder().build((UNITS, FP32)).refused is None and counting.recovered == [3]


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ((HEADS, DYNAMIC), "prune_heads: TabularStudent has no attention"),
        ((DYNAMIC.model_copy(update={"keep": ("x",)}),), "int8_dynamic.keep: no layer is called x"),
    ],
)
def test_a_recipe_that_does_not_apply_is_refused_once_with_the_reason(
    counting: Counting, recipe: tuple[Step, ...], why: str
) -> None:
    candidate = counting.builder().build(recipe)
    assert candidate.refused is not None and candidate.refused.startswith(why)
    assert (candidate.folder, candidate.bytes, candidate.quality, candidate.latency) == ("", 0, None, None)
    tried = len(counting.steps), len(counting.finished)
    assert counting.builder().build(recipe) == candidate
    assert (len(counting.steps), len(counting.finished)) == tried
    candidate_folder = counting.folder / "candidates" / candidate.candidate_id
    assert sorted(contents(candidate_folder)) == ["candidate.json"]


def test_a_format_that_changes_too_much_is_refused(counting: Counting) -> None:
    builder = CandidateBuilder(counting.target, write_model, counting.folder, 1e-9)
    candidate = builder.build((DYNAMIC,))
    assert candidate.refused is not None and "`compression.tolerance` allows 1e-09" in candidate.refused
    assert candidate.refused.startswith("int8_dynamic differs from its float32 form by ")
    assert builder.build((FP32,)).refused is None


def test_probabilities_that_are_not_finite_are_refused(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = np.full((400, 2), np.nan, np.float32)
    monkeypatch.setattr(build, "run_onnx", lambda model, feed: strange)
    candidate = counting.builder().build((FP32,))
    assert candidate.refused == "fp32 gives probabilities that are not finite on 400 of 400 rows"


def test_an_unexpected_error_is_not_swallowed(counting: Counting) -> None:
    def fail(state: ModelState, epochs: int) -> ModelState:
        raise OSError("the teacher does not answer")

    with pytest.raises(OSError, match="teacher"):
        counting.builder(recover=fail).build((UNITS, FP32))
    assert not (counting.folder / "candidates").exists()


def test_the_id_depends_on_rows_model_tolerance_and_processor(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(builder: CandidateBuilder, *recipe: Step) -> str:
        return builder._id(recipe or (FP32,))

    other = onnx.ModelProto()
    other.CopyFrom(counting.target.model)
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    plain = counting.builder()
    ids = [
        name(plain),
        name(plain, DYNAMIC),
        name(plain, UNITS, DYNAMIC),
        name(plain, DYNAMIC.model_copy(update={"per_channel": False})),
        name(plain, UNITS.model_copy(update={"recover_epochs": 4}), DYNAMIC),
        name(counting.builder(content_hash="others")),
        name(counting.builder(model=other)),
        name(CandidateBuilder(counting.target, write_model, counting.folder, 0.06)),
    ]
    assert name(counting.builder()) == ids[0]
    monkeypatch.setattr(candidates, "processor", lambda: WITH_VNNI.model_copy(update={"name": "another"}))
    ids.append(name(counting.builder()))
    assert len(set(ids)) == len(ids)


def test_number_formats_but_no_structural_step_apply_to_an_onnx_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "_MAX_LATENCY_SECONDS", 0.01)
    builder = CandidateBuilder(make_graph_target(), write_model, tmp_path, 0.05)
    candidate = builder.build((DYNAMIC,))
    assert candidate.refused is None and candidate.quality is not None
    refused = builder.build((UNITS, DYNAMIC))
    assert refused.refused == (
        "prune_units changes a torch module, and this is an ONNX graph: log the torch module itself, or leave the "
        "structural steps out"
    )
    assert json.loads((tmp_path / "candidates" / candidate.candidate_id / "columns.json").read_text()) is None


def test_the_reference_is_the_model_as_it_is(counting: Counting) -> None:
    reference = counting.builder().build_reference()
    assert (reference.name, reference.quality, reference.difference) == ("fp32", 1.0, pytest.approx(0, abs=1e-6))
    assert reference == counting.builder().build((FP32,))


def test_latency_is_corrected_on_a_busy_machine(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference takes three times as long as at first, and so what is measured beside it counts a third."""
    builder = counting.builder()
    reference = builder.build_reference()
    assert reference.latency is not None
    busy = reference.latency.p50_ms * 3

    def measured(calls: dict[str, Any], **settings: Any) -> dict[str, Latency]:
        assert set(calls) == {"", "reference"}
        return {
            "": Latency(p50_ms=6.0, p95_ms=9.0, calls=10),
            "reference": Latency(p50_ms=busy, p95_ms=busy, calls=10),
        }

    monkeypatch.setattr(candidates, "measure_latency", measured)
    candidate = builder.build((DYNAMIC,))
    assert candidate.latency is not None
    assert (candidate.latency.p50_ms, candidate.latency.p95_ms) == pytest.approx((2.0, 3.0))


def test_remeasuring_in_turns(counting: Counting) -> None:
    builder = counting.builder()
    candidates = [builder.build(recipe) for recipe in ((FP32,), (DYNAMIC,))]
    again = builder.remeasure(candidates)
    assert list(again) == ["fp32", "int8_dynamic"]
    for candidate in candidates:
        new = again[candidate.name]
        assert new.latency is not None and candidate.latency is not None and new.latency.calls >= 10
        assert new.model_copy(update={"latency": candidate.latency}) == candidate


def test_a_single_row_call_is_one_decision(target: CompressionTarget) -> None:
    call = single_row_call(target.model, target.validation(COLUMNS))
    (answer,) = call()  # type: ignore[misc]
    np.testing.assert_array_equal(answer, run_onnx(target.model, {"x": target.validation(COLUMNS)["x"][:1]}))
    assert measure_latency({"a": call}, calls=10)["a"].calls == 10


def test_a_model_that_cannot_serve_as_it_is(counting: Counting) -> None:
    def refuse(folder: Path, model: onnx.ModelProto, built: Any) -> None:
        raise ExportError("no room")

    with pytest.raises(ExportError, match="the model cannot serve as it is: no room"):
        CandidateBuilder(counting.target, refuse, counting.folder, 0.05).build_reference()


def test_stored_candidates_are_invalid_when_the_code_of_compression_changes(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = counting.builder().build((DYNAMIC,))
    assert counting.builder().build((DYNAMIC,)) == candidate
    monkeypatch.setattr(stillhouse, "__version__", "0.0.0")
    assert counting.builder().build((DYNAMIC,)) == candidate and counting.finished == ["int8_dynamic"]
    monkeypatch.setattr(candidates, "code_digest", lambda: "other")
    assert counting.builder().build((DYNAMIC,)).candidate_id != candidate.candidate_id
    assert counting.finished == ["int8_dynamic"] * 2
