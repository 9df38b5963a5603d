"""An exported student gives torch's probabilities on every kind of row, or the export is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from stillhouse.compress.export import MAX_DIFFERENCE, export_onnx, run_onnx, run_torch, slim
from stillhouse.compress.steps.onnxruntime_quantizer import quantizable_nodes
from stillhouse.distill.students import TabularStudent
from stillhouse.errors import ExportError
from tests.compress.models_for_tests import CARDINALITIES, encoded, feed, tabular


@pytest.fixture(scope="module")
def student() -> TabularStudent:
    return tabular(dropout=0.1)


@pytest.fixture(scope="module")
def model(student: TabularStudent) -> onnx.ModelProto:
    return export_onnx(student, feed(200))


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_equals_torch_for_any_batch(model: onnx.ModelProto, student: TabularStudent, count: int) -> None:
    rows = feed(count, seed=count)
    actual = run_onnx(model, rows)
    assert actual.shape == (count, 2)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, run_torch(student, rows), atol=1e-6)
    np.testing.assert_allclose(actual.sum(axis=1), 1.0, atol=1e-6)


def test_equals_torch_at_the_edges_of_the_encoding(model: onnx.ModelProto, student: TabularStudent) -> None:
    rows = np.zeros((5, 23), dtype=np.float32)  # codes 0: nothing known
    rows[0, :20] = np.nan
    rows[1, :20] = student.edges[:, 3].numpy()
    rows[2, :20] = 1e30
    rows[3, :20] = -1e30
    rows[4, 20:] = CARDINALITIES
    actual = run_onnx(model, {"x": rows})
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, run_torch(student, {"x": rows}), atol=1e-6)


@pytest.mark.parametrize("slimmed", [False, True])
def test_the_interface_is_one_float_matrix_in_and_one_out(model: onnx.ModelProto, slimmed: bool) -> None:
    graph = (slim(model) if slimmed else model).graph
    (x,), (p,) = graph.input, graph.output
    assert (x.name, p.name) == ("x", "probabilities")
    for value, size in ((x, 23), (p, 2)):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        batch, width = value.type.tensor_type.shape.dim
        assert batch.dim_param == "batch"
        assert width.dim_value == size


def test_nodes_keep_their_layers_names(model: onnx.ModelProto) -> None:
    assert quantizable_nodes(model) == [
        "/student/layers/layers.0/Gemm",
        "/student/layers/layers.3/Gemm",
        "/student/embeddings.2/Gather",
        "/student/embeddings.0/Gather",
        "/student/layers/layers.6/Gemm",
        "/student/embeddings.1/Gather",
    ]


def test_the_file_is_little_more_than_the_weights(model: onnx.ModelProto, student: TabularStudent) -> None:
    small = slim(model)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in student.state_dict().values())
    onnx.checker.check_model(small, full_check=True)
    assert small.ByteSize() < weights + 4_000


def test_slim_has_no_names_and_the_same_answers(model: onnx.ModelProto) -> None:
    small = slim(model)
    assert small.ByteSize() < model.ByteSize()
    assert not any(node.name or node.doc_string for node in small.graph.node)
    np.testing.assert_array_equal(run_onnx(small, feed(20)), run_onnx(model, feed(20)))


def test_slimming_a_slim_model_changes_neither_size_nor_numbers(model: onnx.ModelProto) -> None:
    small = slim(model)
    again = slim(small)
    assert again.ByteSize() <= small.ByteSize()
    np.testing.assert_array_equal(run_onnx(again, feed(20)), run_onnx(small, feed(20)))


def test_dropout_is_off_and_the_student_left_as_it_was(student: TabularStudent) -> None:
    student.train()
    export_onnx(student, feed(50))
    assert all(module.training for module in student.modules())
    np.testing.assert_array_equal(run_torch(student, feed(10)), run_torch(student, feed(10)))
    assert student.training


def test_the_same_student_gives_the_same_bytes(student: TabularStudent, model: onnx.ModelProto) -> None:
    assert export_onnx(student, feed(200)).SerializeToString() == model.SerializeToString()


def test_it_is_silent(
    student: TabularStudent, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    export_onnx(student, feed(20))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


class Two(nn.Module):
    """Reads two inputs of different types."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        return numbers + self.table(codes)


def test_several_inputs_are_named_and_the_softmax_may_be_left_out() -> None:
    random = np.random.default_rng(0)
    rows = {"numbers": random.normal(size=(9, 3)).astype(np.float32), "codes": random.integers(0, 5, 9)}
    module = Two()
    with_softmax, bare = export_onnx(module, rows), export_onnx(module, rows, softmax=False)
    assert [value.name for value in with_softmax.graph.input] == ["numbers", "codes"]
    np.testing.assert_allclose(run_onnx(bare, rows), run_torch(module, rows, softmax=False), atol=1e-6)
    np.testing.assert_allclose(run_onnx(with_softmax, rows).sum(axis=1), 1, atol=1e-6)
    assert abs(run_onnx(bare, rows) - run_onnx(with_softmax, rows)).max() > 0.1


class Branching(nn.Module):
    """Python control flow on the data: a trace would freeze one branch."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Frozen(nn.Module):
    """Bakes the traced batch's own size into a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(len(list(x)))


class Diverged(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.nan


class Unknown(nn.Module):
    """Uses an operator that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize(
    ("strange", "message"),
    [
        (Branching(), "Branching cannot be exported"),
        (Frozen(), "differs from torch by|cannot be exported|fails on"),
        (Diverged(), "differs from torch by nan"),
        (Unknown(), "Unknown cannot be exported"),
    ],
)
def test_an_export_that_differs_from_torch_is_refused(strange: nn.Module, message: str) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    with pytest.raises(ExportError, match=message):
        export_onnx(strange, {"x": rows})


def test_a_failing_export_leaves_standard_output_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError):
        export_onnx(Unknown(), feed(20))
    assert capfd.readouterr().out == ""


def test_what_onnx_runtime_refuses_is_an_export_error(model: onnx.ModelProto) -> None:
    for strange, rows in ((model, encoded(5)[:, :7]), (b"not a model", encoded(5))):
        with pytest.raises(ExportError, match="ONNX Runtime cannot run the model on 5 rows"):
            run_onnx(strange, {"x": rows})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"x": np.zeros((0, 23), np.float32)}, "at least one; got {'x': 0}"),
        ({"x": np.zeros((5, 23))}, "must have the same dtype"),
        ({"x": np.zeros(23, np.float32)}, "too many indices"),
        ({"a": np.zeros((5, 2), np.float32), "b": np.zeros(4)}, "got {'a': 5, 'b': 4}"),
        ({"a": np.float32(3)}, "got {'a': 0}"),
    ],
)
def test_rows_that_no_student_reads_are_refused(
    student: TabularStudent, rows: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export_onnx(student, rows)


def test_the_tolerance_is_far_above_rounding_and_far_below_a_decision() -> None:
    assert 1e-6 < MAX_DIFFERENCE < 1e-3
