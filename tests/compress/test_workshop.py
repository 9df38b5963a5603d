"""A candidate is made once: asked for again, by whatever process, it is read."""

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
from stillhouse.compress.search import candidates as module
from stillhouse.compress.export import run_onnx
from stillhouse.compress.target import ModelState, CompressionTarget
from stillhouse.compress.search.candidates import CandidateBuilder, single_row_call
from stillhouse.config import DynamicInt8, Fp32, LowRank, PruneHeads, PruneUnits, Step
from stillhouse.errors import ExportError
from stillhouse.latency import measure_latency
from stillhouse.records import CompressionCandidate, Latency

from .models_for_tests import COLUMNS, WITH_VNNI, graph_subject, pack_model, tabular_subject

FP32, DYNAMIC = Fp32(method="fp32"), DynamicInt8(method="int8_dynamic")
UNITS = PruneUnits(method="prune_units", ratio=0.5, recover_epochs=3)
RANK = LowRank(method="low_rank", ratio=0.5, recover_epochs=2)
HEADS = PruneHeads(method="prune_heads")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return tabular_subject()


class Counting:
    """Counts what is made, quickly: latencies are not measured but said."""

    def __init__(self, subject: Subject, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self.recovered: list[int] = []
        self.finished: list[str] = []
        finish, restructure = module.finish, module.restructure

        def counted_finish(subject: Subject, recipe: Any, *others: Any) -> Any:
            self.finished.append(recipe[-1].method)
            return finish(subject, recipe, *others)

        def counted_restructure(step: Any, *others: Any) -> Any:
            self.steps.append(step.method)
            return restructure(step, *others)

        def recover(form: Form, epochs: int) -> Form:
            self.recovered.append(epochs)
            assert subject.recover is not None
            return subject.recover(form, epochs)

        monkeypatch.setattr(module, "finish", counted_finish)
        monkeypatch.setattr(module, "restructure", counted_restructure)
        monkeypatch.setattr(module, "_SECONDS_MEASURED", 0.01)
        self.subject, self.folder = replace(subject, recover=recover), folder

    def workshop(self, **changes: Any) -> Workshop:
        return Workshop(replace(self.subject, **changes), pack_model, self.folder, 0.05)


@pytest.fixture
def counting(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(subject, tmp_path, monkeypatch)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_candidate_is_a_folder_with_its_artifact_and_its_figures(counting: Counting, subject: Subject) -> None:
    made = counting.workshop().make((UNITS, DYNAMIC))
    place = counting.folder / "candidates" / made.candidate_id
    assert sorted(contents(place)) == ["artifact/model.onnx", "candidate.json", "columns.json"]
    assert CompressionCandidate.model_validate_json((place / "candidate.json").read_text()) == made
    assert (made.name, made.folder, made.refused) == ("units50+int8_dynamic", str(place / "artifact"), None)
    assert [step["method"] for step in made.recipe] == ["prune_units", "int8_dynamic"]
    assert made.bytes == (place / "artifact" / "model.onnx").stat().st_size
    assert json.loads((place / "columns.json").read_text()) == COLUMNS
    model = onnx.load(place / "artifact" / "model.onnx")
    assert made.quality == subject.quality(run_onnx(model, subject.judged(COLUMNS)))
    wanted = run_onnx(subject.model, subject.calibration(COLUMNS))
    found = run_onnx(model, subject.calibration(COLUMNS))
    assert made.difference == pytest.approx(float(np.abs(found - wanted).mean()), abs=1e-6)
    assert made.latency is not None and made.latency.calls >= 10 and made.cpu_ms is not None and made.seconds > 0
    assert not list((counting.folder / "aside").iterdir())


def test_the_same_again_is_read_by_another_workshop_too(counting: Counting) -> None:
    first = counting.workshop()
    made = [first.make(recipe) for recipe in ((FP32,), (DYNAMIC,), (UNITS, DYNAMIC))]
    before = contents(counting.folder)
    done = (list(counting.steps), list(counting.finished), list(counting.recovered))
    assert done == (["prune_units"], ["fp32", "int8_dynamic", "int8_dynamic"], [3])
    for workshop in (first, counting.workshop()):
        assert [workshop.make(recipe) for recipe in ((FP32,), (DYNAMIC,), (UNITS, DYNAMIC))] == made
    assert (counting.steps, counting.finished, counting.recovered) == done
    assert contents(counting.folder) == before


def test_a_form_is_recovered_once_and_read_afterwards(counting: Counting) -> None:
    first = counting.workshop()
    for last in (FP32, DYNAMIC):
        first.make((UNITS, RANK, last))
    assert counting.steps == ["prune_units", "low_rank"] and counting.recovered == [3, 2]
    assert len(list((counting.folder / "forms").iterdir())) == 2
    second = counting.workshop()
    form, wanted = second.form((UNITS, RANK)), first.form((UNITS, RANK))
    assert counting.recovered == [3, 2] and counting.steps == ["prune_units", "low_rank"] * 2
    assert form is not None and wanted is not None
    state = wanted.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in form.module.state_dict().items())
    shutil.rmtree(counting.folder / "candidates")
    assert second.make((UNITS, RANK, DYNAMIC)).refused is None and counting.recovered == [3, 2]


def test_only_some_forms_are_at_hand_and_the_others_are_made_of_what_is_kept(counting: Counting) -> None:
    workshop = counting.workshop()
    steps = [PruneUnits(method="prune_units", ratio=ratio, recover_epochs=1) for ratio in (0.1, 0.2, 0.3, 0.4, 0.5)]
    shapes = [workshop.form((step,)).module.layers[0].out_features for step in steps]  # type: ignore[union-attr,index]
    assert shapes == [43, 38, 34, 29, 24] and len(workshop._forms) == 3
    assert workshop.form((steps[0],)).module.layers[0].out_features == 43  # type: ignore[union-attr,index]
    assert counting.recovered == [1] * 5 and len(counting.steps) == 6


def test_without_epochs_or_anything_to_learn_from_nothing_is_recovered(counting: Counting) -> None:
    bare = UNITS.model_copy(update={"recover_epochs": 0})
    assert counting.workshop().make((bare, FP32)).refused is None
    assert counting.workshop(recover=None).make((UNITS, FP32)).refused is None
    assert not counting.recovered and not (counting.folder / "forms").exists()


def test_a_candidate_that_a_killed_process_left_half_made_is_made_again(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(folder: Path, model: onnx.ModelProto, built: Any) -> None:
        (folder / "model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    workshop = counting.workshop()
    workshop.pack = die
    with pytest.raises(KeyboardInterrupt):
        workshop.make((UNITS, DYNAMIC))
    (half,) = (counting.folder / "aside").iterdir()
    assert (half / "artifact" / "model.onnx").read_bytes() == b"half"
    assert not (counting.folder / "candidates").exists()
    (half / "artifact" / "debris").mkdir()
    made = counting.workshop().make((UNITS, DYNAMIC))
    assert made.candidate_id == half.name and made.refused is None and counting.recovered == [3]
    assert sorted(contents(Path(made.folder))) == ["model.onnx"]
    assert not list((counting.folder / "aside").iterdir())


def test_a_recovery_that_was_killed_leaves_no_form(counting: Counting) -> None:
    def die(form: Form, epochs: int) -> Form:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        counting.workshop(recover=die).make((UNITS, FP32))
    assert not (counting.folder / "forms").exists()
    assert counting.workshop().make((UNITS, FP32)).refused is None and counting.recovered == [3]


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ((HEADS, DYNAMIC), "prune_heads: TabularStudent has no attention"),
        ((DYNAMIC.model_copy(update={"keep": ("x",)}),), "int8_dynamic.keep: no layer is called x"),
    ],
)
def test_what_does_not_apply_is_refused_with_the_reason_once(
    counting: Counting, recipe: tuple[Step, ...], why: str
) -> None:
    made = counting.workshop().make(recipe)
    assert made.refused is not None and made.refused.startswith(why)
    assert (made.folder, made.bytes, made.quality, made.latency) == ("", 0, None, None)
    tried = len(counting.steps), len(counting.finished)
    assert counting.workshop().make(recipe) == made
    assert (len(counting.steps), len(counting.finished)) == tried
    place = counting.folder / "candidates" / made.candidate_id
    assert sorted(contents(place)) == ["candidate.json"]


def test_a_format_that_changes_too_much_is_refused(counting: Counting) -> None:
    workshop = Workshop(counting.subject, pack_model, counting.folder, 1e-9)
    made = workshop.make((DYNAMIC,))
    assert made.refused is not None and "`compression.tolerance` allows 1e-09" in made.refused
    assert made.refused.startswith("int8_dynamic differs from its float32 form by ")
    assert workshop.make((FP32,)).refused is None


def test_probabilities_that_are_not_finite_are_refused(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = np.full((400, 2), np.nan, np.float32)
    monkeypatch.setattr(build, "run_onnx", lambda model, feed: strange)
    made = counting.workshop().make((FP32,))
    assert made.refused == "fp32 gives probabilities that are not finite on 400 of 400 rows"


def test_an_error_that_is_nobodys_format_is_not_swallowed(counting: Counting) -> None:
    def fail(form: Form, epochs: int) -> Form:
        raise OSError("the teacher does not answer")

    with pytest.raises(OSError, match="teacher"):
        counting.workshop(recover=fail).make((UNITS, FP32))
    assert not (counting.folder / "candidates").exists()


def test_other_rows_models_tolerances_and_processors_are_other_candidates(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(workshop: Workshop, *recipe: Step) -> str:
        return workshop._id(recipe or (FP32,))

    other = onnx.ModelProto()
    other.CopyFrom(counting.subject.model)
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    plain = counting.workshop()
    ids = [
        name(plain),
        name(plain, DYNAMIC),
        name(plain, UNITS, DYNAMIC),
        name(plain, DYNAMIC.model_copy(update={"per_channel": False})),
        name(plain, UNITS.model_copy(update={"recover_epochs": 4}), DYNAMIC),
        name(counting.workshop(source="others")),
        name(counting.workshop(model=other)),
        name(Workshop(counting.subject, pack_model, counting.folder, 0.06)),
    ]
    assert name(counting.workshop()) == ids[0]
    monkeypatch.setattr(module, "processor", lambda: WITH_VNNI.model_copy(update={"name": "another"}))
    ids.append(name(counting.workshop()))
    assert len(set(ids)) == len(ids)


def test_an_onnx_graph_alone_takes_formats_and_no_structural_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS_MEASURED", 0.01)
    workshop = Workshop(graph_subject(), pack_model, tmp_path, 0.05)
    made = workshop.make((DYNAMIC,))
    assert made.refused is None and made.quality is not None
    told = workshop.make((UNITS, DYNAMIC))
    assert told.refused == (
        "prune_units changes a torch module, and this is an ONNX graph: log the torch module itself, or leave the "
        "structural steps out"
    )
    assert json.loads((tmp_path / "candidates" / made.candidate_id / "columns.json").read_text()) is None


def test_the_reference_is_the_model_as_it_is(counting: Counting) -> None:
    found = counting.workshop().reference()
    assert (found.name, found.quality, found.difference) == ("fp32", 1.0, pytest.approx(0, abs=1e-6))
    assert found == counting.workshop().make((FP32,))


def test_a_busy_moment_is_divided_out(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference takes three times as long as at first, and so what is measured beside it counts a third."""
    workshop = counting.workshop()
    reference = workshop.reference()
    assert reference.latency is not None
    busy = reference.latency.p50_ms * 3

    def measured(calls: dict[str, Any], **settings: Any) -> dict[str, Latency]:
        assert set(calls) == {"", "reference"}
        return {
            "": Latency(p50_ms=6.0, p95_ms=9.0, calls=10),
            "reference": Latency(p50_ms=busy, p95_ms=busy, calls=10),
        }

    monkeypatch.setattr(module, "measure_latency", measured)
    made = workshop.make((DYNAMIC,))
    assert made.latency is not None
    assert (made.latency.p50_ms, made.latency.p95_ms) == pytest.approx((2.0, 3.0))


def test_remeasured_in_turns(counting: Counting) -> None:
    workshop = counting.workshop()
    made = [workshop.make(recipe) for recipe in ((FP32,), (DYNAMIC,))]
    again = workshop.remeasured(made)
    assert list(again) == ["fp32", "int8_dynamic"]
    for each in made:
        new = again[each.name]
        assert new.latency is not None and each.latency is not None and new.latency.calls >= 10
        assert new.model_copy(update={"latency": each.latency}) == each


def test_one_row_is_one_decision(subject: Subject) -> None:
    call = one_row(subject.model, subject.judged(COLUMNS))
    (answer,) = call()  # type: ignore[misc]
    np.testing.assert_array_equal(answer, run_onnx(subject.model, {"x": subject.judged(COLUMNS)["x"][:1]}))
    assert measure_latency({"a": call}, calls=10)["a"].calls == 10


def test_a_model_that_cannot_serve_as_it_is(counting: Counting) -> None:
    def refuse(folder: Path, model: onnx.ModelProto, built: Any) -> None:
        raise ExportError("no room")

    with pytest.raises(ExportError, match="the model cannot serve as it is: no room"):
        Workshop(counting.subject, refuse, counting.folder, 0.05).reference()


def test_what_was_kept_is_made_again_when_the_code_of_compression_is_another(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = counting.workshop().make((DYNAMIC,))
    assert counting.workshop().make((DYNAMIC,)) == made
    monkeypatch.setattr(stillhouse, "__version__", "0.0.0")
    assert counting.workshop().make((DYNAMIC,)) == made and counting.finished == ["int8_dynamic"]
    monkeypatch.setattr(module, "code_digest", lambda: "other")
    assert counting.workshop().make((DYNAMIC,)).candidate_id != made.candidate_id
    assert counting.finished == ["int8_dynamic"] * 2
