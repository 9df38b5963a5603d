"""An exported student gives torch's probabilities, on every kind of row, or is not exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from stillhouse.compress.export import TOLERANCE, export_onnx, probabilities, run_onnx, slim
from stillhouse.distill.students import TabularStudent, quantile_edges
from stillhouse.errors import ExportError

CARDINALITIES = (16, 3, 105)


def encoded(count: int, seed: int = 0) -> np.ndarray:
    """Rows as `stillhouse.variant.encode` makes them: 20 numbers (some missing) and 3 category codes."""
    random = np.random.default_rng(seed)
    numbers = random.normal(scale=np.logspace(-1, 3, 20), size=(count, 20))
    numbers[random.random(numbers.shape) < 0.05] = np.nan
    codes = [random.integers(0, values + 1, (count, 1)) for values in CARDINALITIES]
    return np.hstack([numbers, *codes]).astype(np.float32)


@pytest.fixture(scope="module")
def student() -> TabularStudent:
    torch.manual_seed(0)
    return TabularStudent(quantile_edges(encoded(2000)[:, :20], 12), CARDINALITIES, 2, (64, 32), dropout=0.1)


@pytest.fixture(scope="module")
def model(student: TabularStudent, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(student, encoded(200), path)
    return path.read_bytes()


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_equals_torch_for_any_batch(model: bytes, student: TabularStudent, count: int) -> None:
    rows = encoded(count, seed=count)
    found = run_onnx(model, rows)
    assert found.shape == (count, 2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, probabilities(student, rows), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)


def test_equals_torch_at_the_edges_of_the_encoding(model: bytes, student: TabularStudent) -> None:
    rows = np.zeros((5, 23), dtype=np.float32)  # codes 0: nothing known
    rows[0, :20] = np.nan
    rows[1, :20] = student.edges[:, 3].numpy()
    rows[2, :20] = 1e30
    rows[3, :20] = -1e30
    rows[4, 20:] = CARDINALITIES
    found = run_onnx(model, rows)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, probabilities(student, rows), atol=1e-6)


def test_the_interface_is_one_float_matrix_in_and_one_out(model: bytes) -> None:
    graph = onnx.load_model_from_string(model).graph
    (x,), (p,) = graph.input, graph.output
    assert (x.name, p.name) == ("x", "probabilities")
    for value, size in ((x, 23), (p, 2)):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        batch, width = value.type.tensor_type.shape.dim
        assert batch.dim_param == "batch"
        assert width.dim_value == size


def test_the_file_is_little_more_than_the_weights(model: bytes, student: TabularStudent) -> None:
    weights = sum(tensor.numel() * tensor.element_size() for tensor in student.state_dict().values())
    onnx.checker.check_model(onnx.load_model_from_string(model), full_check=True)
    assert len(model) < weights + 4_000


def test_dropout_is_off_and_the_student_left_as_it_was(student: TabularStudent, tmp_path: Path) -> None:
    student.train()
    export_onnx(student, encoded(50), tmp_path / "model.onnx")
    assert student.training
    assert all(module.training for module in student.modules())
    rows = encoded(10)
    np.testing.assert_array_equal(probabilities(student, rows), probabilities(student, rows))


def test_the_same_student_gives_the_same_bytes(student: TabularStudent, model: bytes, tmp_path: Path) -> None:
    export_onnx(student, encoded(200), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == model


def test_slimming_a_slim_model_changes_neither_size_nor_numbers(model: bytes) -> None:
    again = slim(onnx.load_model_from_string(model)).SerializeToString()
    assert len(again) <= len(model)
    np.testing.assert_array_equal(run_onnx(again, encoded(20)), run_onnx(model, encoded(20)))


def test_it_is_silent(
    student: TabularStudent, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    export_onnx(student, encoded(20), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


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
def test_what_does_not_agree_is_refused_and_not_written(strange: nn.Module, message: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    with pytest.raises(ExportError, match=message):
        export_onnx(strange, rows, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_onnx_runtime_refuses_is_an_export_error(model: bytes) -> None:
    for strange, rows in ((model, encoded(5)[:, :7]), (b"not a model", encoded(5))):
        with pytest.raises(ExportError, match="ONNX Runtime cannot run the model on 5 rows"):
            run_onnx(strange, rows)


@pytest.mark.parametrize("rows", [np.zeros((0, 23), np.float32), np.zeros((5, 23)), np.zeros(23, np.float32)])
def test_rows_that_no_student_reads_are_refused(student: TabularStudent, rows: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="float32 rows"):
        export_onnx(student, rows, tmp_path / "model.onnx")


def test_the_tolerance_is_far_above_rounding_and_far_below_a_decision() -> None:
    assert 1e-6 < TOLERANCE < 1e-3
