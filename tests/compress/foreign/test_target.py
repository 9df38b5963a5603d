"""Foreign classifiers as compression targets: torch programs and ONNX graphs."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from stillhouse.compress.export import run_onnx, slim
from stillhouse.compress.foreign.onnx_graph import load_classifier
from stillhouse.compress.foreign.rows import ModelInput, build_feed
from stillhouse.compress.foreign.target import model_writer, output_names, target_from_file
from stillhouse.compress.foreign.torch_program import read_inputs, read_program
from stillhouse.compress.search.greedy import search
from stillhouse.compress.steps.kinds import quantise
from stillhouse.config import Compression, DynamicInt8, Fp32, PruneUnits, Search, StaticInt8
from stillhouse.errors import DataError, ExportError, SchemaError
from stillhouse.records import SizeLimits
from tests.compress.foreign.test_layers import program

ROWS = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
X = ModelInput("x", np.dtype(np.float32), (6,))


@pytest.fixture(scope="module")
def torch_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that gives logits."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("torch") / "model.pt2"
    network = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))
    program(network, torch.from_numpy(ROWS[:4]), file=file)
    return file


def graph(
    file: Path,
    *,
    outputs: Sequence[Any] | None = None,
    shape: Sequence[Any] = ("n", 6),
    softmax: bool = True,
    extra: Sequence[Any] = (),
    opset: int = 13,
) -> Path:
    """Two linear layers, by hand, as an ONNX file."""
    draw = np.random.default_rng(1)
    weights = [draw.normal(size=size).astype(np.float32) for size in ((6, 32), (32,), (32, 3))]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Add", ["a", "b1"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"], axis=1),
        *extra,
    ]
    graph_outputs = [helper.make_tensor_value_info("p" if softmax else "logits", TensorProto.FLOAT, ["n", 3])]
    graph_proto = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        graph_outputs if outputs is None else list(outputs),
        [numpy_helper.from_array(weight, name) for weight, name in zip(weights, ("w1", "b1", "w2"), strict=True)],
    )
    versions = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph_proto, opset_imports=versions, ir_version=9), file)
    return file


# --------------------------------------------------------------------------- torch


def test_a_torch_program_keeps_its_inputs_and_its_logits(torch_model: Path) -> None:
    target = target_from_file(torch_model, ROWS)
    (reads,) = target.model.graph.input
    (gives,) = target.model.graph.output
    assert (reads.name, gives.name, target.logits) == ("input", "logits", True)
    assert len(target.calibration(None)["input"]) == 150 and len(target.validation(None)["input"]) == 50
    original: Any = read_program(torch_model).module()
    expected = original(torch.from_numpy(ROWS)).detach().numpy()
    assert np.allclose(run_onnx(target.model, {"input": ROWS}), expected, atol=1e-5)
    probs = target.to_probabilities(expected[3::4])
    assert np.allclose(probs.sum(axis=1), 1, atol=1e-5) and target.quality(probs) == 1.0


def test_labels_are_scored_and_a_score_may_be_given(torch_model: Path) -> None:
    labels = np.arange(200) % 3
    validation_labels = labels[3::4]
    right = np.eye(3)[validation_labels]
    assert target_from_file(torch_model, ROWS, labels).quality(right) == 1.0

    def halved(_: object, truth: np.ndarray[Any, Any]) -> float:
        return float((truth == validation_labels).mean()) / 2

    half = target_from_file(torch_model, ROWS, labels.astype(float), halved)
    assert half.quality(right) == 0.5


def test_recovery_of_a_pruned_state_is_effective_and_deterministic(torch_model: Path) -> None:
    target = target_from_file(torch_model, ROWS)
    assert target.state is not None and target.recover is not None
    from stillhouse.compress.steps.kinds import apply_step

    step = PruneUnits(method="prune_units", ratio=0.5)
    pruned = apply_step(step, target.state, target.calibration(None))
    expected = target.to_probabilities(run_onnx(target.model, {"input": ROWS}))

    def lost(module: nn.Module) -> float:
        with torch.no_grad():
            return float(np.abs(target.to_probabilities(module(torch.from_numpy(ROWS)).numpy()) - expected).mean())

    once, twice = (target.recover(pruned, 20).module for _ in range(2))
    assert lost(once) < 0.5 * lost(pruned.module)
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))


def test_a_search_over_a_torch_program(torch_model: Path, tmp_path: Path) -> None:
    settings = Compression(
        recipes=((Fp32(method="fp32"),),),
        search=Search(time="20s", candidates=6, steps=("prune_units", "int8_dynamic"), recover_epochs=3),  # type: ignore[arg-type]
    )
    make = functools.partial(target_from_file, torch_model, ROWS)
    frontier = search(make, settings, SizeLimits(max_quality_loss=0.1), model_writer("models:/theirs/1"), tmp_path)
    assert any(candidate.name.startswith("units") for candidate in frontier.servable)
    chosen = Path(frontier.named(frontier.chosen).folder)
    manifest = json.loads((chosen / "manifest.json").read_text())
    assert manifest["source"] == "models:/theirs/1" and manifest["output"] == "logits"
    assert frontier.named(frontier.chosen).bytes < frontier.reference.bytes
    again = search(make, settings, SizeLimits(max_quality_loss=0.1), model_writer("models:/theirs/1"), tmp_path)
    assert [candidate.candidate_id for candidate in again.candidates] == [
        candidate.candidate_id for candidate in frontier.candidates
    ]


def test_the_arguments_of_worker_processes_can_be_pickled(torch_model: Path) -> None:
    pickle.dumps((functools.partial(target_from_file, torch_model, ROWS), model_writer("models:/theirs/1")))


def test_too_few_rows_and_labels_that_do_not_fit(torch_model: Path) -> None:
    with pytest.raises(DataError, match="20 rows are too few"):
        target_from_file(torch_model, ROWS[:20])
    with pytest.raises(DataError, match="one for each row"):
        target_from_file(torch_model, ROWS, np.zeros(7))
    with pytest.raises(DataError, match="0…2 for this model"):
        target_from_file(torch_model, ROWS, np.full(200, 3))


# --------------------------------------------------------------------------- rows


def test_rows_come_as_arrays_or_tables() -> None:
    words = ModelInput("words", np.dtype(np.int64), (2,))
    table = pd.DataFrame({"x": list(ROWS), "words": [[1, 2]] * 200, "other": 0})
    frontier = build_feed(table, [X, words])
    assert np.array_equal(frontier["x"], ROWS) and frontier["words"].shape == (200, 2)
    assert np.array_equal(build_feed(pd.DataFrame(ROWS.astype(float)), [X])["x"], ROWS)
    assert build_feed({"words": np.ones((3, 2))}, [words])["words"].dtype == np.int64
    age = ModelInput("age", np.dtype(np.float32), (1,))
    assert build_feed(pd.DataFrame({"age": [1, 2]}), [age])["age"].shape == (2, 1)


@pytest.mark.parametrize(
    ("rows", "inputs", "message"),
    [
        (ROWS[:, :5], [X], r"rows of input x are \[200, 5\]"),
        ({"y": ROWS}, [X], r"lack x float32 \[n, 6\]; they have: y"),
        (ROWS, [X, X], "are one array: name each"),
        ({"w": np.full((3, 2), 0.5)}, [ModelInput("w", np.dtype(np.int64), (2,))], "w is float64 in the rows"),
        (
            {"x": ROWS, "w": np.ones((3, 2))},
            [X, ModelInput("w", np.dtype(np.int64), (2,))],
            "differ in their number of rows",
        ),
        (pd.DataFrame({"a": ["?"]}), [X], "columns a are not numeric"),
    ],
)
def test_rows_that_do_not_fit(rows: Any, inputs: list[ModelInput], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        build_feed(rows, inputs)


# --------------------------------------------------------------------------- ONNX


def test_an_onnx_graph_is_converted_to_opset_18_with_unique_node_names(tmp_path: Path) -> None:
    target = target_from_file(graph(tmp_path / "m.onnx"), ROWS)
    assert target.state is None and not target.logits and target.output == "p"
    assert {opset.version for opset in target.model.opset_import if not opset.domain} == {18}
    names = [node.name for node in target.model.graph.node]
    assert all(names) and len(set(names)) == len(names)
    assert target_from_file(graph(tmp_path / "l.onnx", softmax=False), ROWS).logits


def test_a_search_over_an_onnx_graph(tmp_path: Path) -> None:
    make = functools.partial(target_from_file, graph(tmp_path / "m.onnx", softmax=False), ROWS)
    settings = Compression(search=Search(time="20s", candidates=5))  # type: ignore[arg-type]
    frontier = search(make, settings, SizeLimits(max_quality_loss=0.2), model_writer("models:/m-1"), tmp_path / "work")
    assert {"int8_dynamic", "int8_static"} <= {candidate.name for candidate in frontier.servable}
    assert all(candidate.difference is not None and candidate.difference < 0.05 for candidate in frontier.servable)


def test_label_outputs_and_zipmaps_are_replaced_by_the_class_scores(tmp_path: Path) -> None:
    extra = [
        helper.make_node("ArgMax", ["p"], ["label"], axis=1, keepdims=0),
        helper.make_node("ZipMap", ["p"], ["by_name"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
        helper.make_value_info("by_name", kind),
    ]
    model, feed = load_classifier(
        graph(tmp_path / "m.onnx", extra=extra, outputs=outputs), lambda reads: build_feed(ROWS, reads)
    )
    assert [value.name for value in model.graph.output] == ["p"]
    assert not {"ZipMap", "ArgMax"} & {node.op_type for node in model.graph.node}
    plain, _ = load_classifier(graph(tmp_path / "plain.onnx"), lambda reads: build_feed(ROWS, reads))
    assert np.allclose(run_onnx(model, feed), run_onnx(plain, feed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (1, 6)}, "input x takes exactly 1 rows at once"),
        ({"shape": ("n", "length")}, r"dimension 1 \(length\) of input x is left open"),
        (
            {
                "extra": [helper.make_node("ArgMax", ["p"], ["label"], axis=1, keepdims=0)],
                "outputs": [helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])],
            },
            r"gives label \[200\], and a",
        ),
    ],
)
def test_graphs_that_cannot_be_compressed(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        target_from_file(graph(tmp_path / "m.onnx", **options), ROWS)


def test_a_broken_graph(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="the ONNX model is broken"):
        target_from_file(tmp_path / "m.onnx", ROWS)


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[5] = np.nan
    with pytest.raises(DataError, match="no finite numbers on 1 of 200 rows"):
        target_from_file(graph(tmp_path / "m.onnx"), rows)


# --------------------------------------------------------------------------- slim graphs of strangers


def test_short_names_do_not_collide_with_input_names(tmp_path: Path) -> None:
    """Inputs called a, b, c … 9 look like the short names."""
    nodes = [
        helper.make_node("Add", ["3", "4"], ["sum"]),
        helper.make_node("Mul", ["sum", "two"], ["5"]),
        helper.make_node("Neg", ["5"], ["a"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("3", "4", "a")]
    two = numpy_helper.from_array(np.float32(2), "two")
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:2], values[2:], [two]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    feed = {"3": np.ones((4, 2), np.float32), "4": np.ones((4, 2), np.float32)}
    assert np.array_equal(run_onnx(slim(model), feed), run_onnx(model, feed))


def test_a_graph_with_branches_is_not_changed() -> None:
    def branch(name: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("Mul", ["x", "two"], [name])], name, [], [out])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "two"], ["is"]),
        helper.make_node("If", ["is"], ["p"], then_branch=branch("t"), else_branch=branch("e")),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "p")]
    two = numpy_helper.from_array(np.float32(2), "two")
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], [two]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    feed = {"x": np.ones((4, 2), np.float32)}
    assert np.array_equal(run_onnx(slim(model), feed), 2 * feed["x"])


def test_inputs_of_the_program_keep_their_types(tmp_path: Path) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(9, 3)

        def forward(self, word: torch.Tensor) -> torch.Tensor:
            frontier: torch.Tensor = self.rows(word)
            return frontier

    (reads,) = read_inputs(program(Table(), torch.ones(4, dtype=torch.int64), file=tmp_path / "m.pt2"))
    assert str(reads) == "word int64 [n]"


# --------------------------------------------------------------------------- several outputs, old graphs, wide numbers


def with_hidden(file: Path, *, softmax: bool = False) -> Path:
    """The hidden layer [n, 32] before the logits [n, 3], and, if wanted, the probabilities of these."""
    value = helper.make_tensor_value_info
    outputs = [value("c", TensorProto.FLOAT, ["n", 32]), value("logits", TensorProto.FLOAT, ["n", 3])]
    return graph(file, outputs=[*outputs, *([value("p", TensorProto.FLOAT, ["n", 3])] if softmax else [])])


def test_the_output_that_matches_the_labels_is_chosen(tmp_path: Path) -> None:
    file = with_hidden(tmp_path / "m.onnx")
    labels = run_onnx(onnx.load(graph(tmp_path / "plain.onnx")), {"x": ROWS}).argmax(axis=1)
    target = target_from_file(file, ROWS, labels)
    assert target.output == "logits"
    assert target.quality(target.to_probabilities(run_onnx(target.model, {"x": ROWS[3::4]}))) == 1.0
    assert "the output logits is compressed, of c, logits" in target.notes
    assert target_from_file(with_hidden(tmp_path / "p.onnx", softmax=True), ROWS, labels).output == "p"


def test_an_ambiguous_output_must_be_named(tmp_path: Path) -> None:
    file = with_hidden(tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"gives c \[200, 32\]; logits \[200, 3\], and c or logits .*--output logits"):
        target_from_file(file, ROWS)
    assert target_from_file(file, ROWS, output="logits").output == "logits"
    assert target_from_file(file, ROWS, output="c").output == "c"
    with pytest.raises(ExportError, match=r"--output other: the model gives c \[200, 32\]; logits \[200, 3\]"):
        target_from_file(file, ROWS, output="other")


def test_a_program_with_several_outputs(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            hidden = self.first(x).relu()
            return {"hidden": hidden, "decision": self.second(hidden)}

    torch.manual_seed(0)
    module = Two()
    program(module, torch.from_numpy(ROWS[:4]), file=tmp_path / "model.pt2")
    expected = module(torch.from_numpy(ROWS))["decision"].detach().numpy()
    labels = np.concatenate([[0, 1, 2], expected[3:].argmax(axis=1)])
    with pytest.raises(ExportError, match=r"hidden or decision may be what decides"):
        target_from_file(tmp_path / "model.pt2", ROWS)
    for target in (
        target_from_file(tmp_path / "model.pt2", ROWS, labels),
        target_from_file(tmp_path / "model.pt2", ROWS, output="decision"),
    ):
        assert np.allclose(run_onnx(target.model, {"x": ROWS}), expected, atol=1e-5)
    assert {"hidden", "decision"} <= set(output_names(tmp_path / "model.pt2"))


@pytest.mark.parametrize("opset", [7, 9, 11])
def test_a_graph_of_ir_3_is_quantised(tmp_path: Path, opset: int) -> None:
    """Its constants are inputs, too, as they had to be until 2019."""
    model = onnx.load(graph(tmp_path / "new.onnx", opset=opset, softmax=False))
    model.graph.node.pop()
    model.ir_version = 3
    for initializer in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(initializer.name, initializer.data_type, list(initializer.dims))
        )
    onnx.save(model, tmp_path / "old.onnx")
    target = target_from_file(tmp_path / "old.onnx", ROWS)
    assert target.model.ir_version >= 8 and [initializer.name for initializer in target.model.graph.input] == ["x"]
    for method in (DynamicInt8(method="int8_dynamic"), StaticInt8(method="int8_static")):
        smaller = quantise(method, target.model, target.calibration(None))
        assert "DequantizeLinear" in {n.op_type for n in smaller.graph.node} or any(
            initializer.data_type in (TensorProto.INT8, TensorProto.UINT8) for initializer in smaller.graph.initializer
        )


def test_float64_weights_stay_and_are_noted(tmp_path: Path) -> None:
    model = onnx.load(graph(tmp_path / "m.onnx", softmax=False))
    model.graph.node.pop()
    for initializer in model.graph.initializer:
        initializer.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(initializer).astype(np.float64), initializer.name)
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    onnx.save(model, tmp_path / "wide.onnx")
    (note,) = target_from_file(tmp_path / "wide.onnx", ROWS).notes
    assert "weights are float64" in note and "stay as they are" in note
    assert not target_from_file(graph(tmp_path / "m.onnx"), ROWS).notes


def test_the_quality_name_says_which_measure_is_used_and_why(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), torch.from_numpy(ROWS[:4]), file=tmp_path / "m.pt2"
    )

    def measure(labels: np.ndarray[Any, Any] | None) -> str:
        return target_from_file(tmp_path / "m.pt2", ROWS, labels).quality_name

    assert measure(np.arange(200) // 4 % 2).startswith("the AUC on the validation rows")
    assert "the labels of all 50 validation rows are 1, and the AUC needs rows of both classes" in measure(np.ones(200))
    assert "there are no labels" in measure(None)
