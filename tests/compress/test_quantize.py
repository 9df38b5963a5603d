"""Int8 forms are a third of the bytes, close in probability, and keep the preprocessing exact."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from stillhouse.compress.export import export_onnx, probabilities, run_onnx
from stillhouse.compress.quantize import quantize_dynamic_int8, quantize_static_int8
from stillhouse.config import DynamicInt8, StaticInt8
from stillhouse.distill.students import TabularStudent, quantile_edges
from stillhouse.errors import ExportError

CARDINALITIES = (16, 3, 105)


def encoded(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    numbers = random.normal(scale=np.logspace(-1, 3, 20), size=(count, 20))
    numbers[random.random(numbers.shape) < 0.05] = np.nan
    codes = [random.integers(0, values + 1, (count, 1)) for values in CARDINALITIES]
    return np.hstack([numbers, *codes]).astype(np.float32)


@pytest.fixture(scope="module")
def student() -> TabularStudent:
    """A student whose probabilities spread over (0, 1), as a trained one's do."""
    torch.manual_seed(0)
    student = TabularStudent(quantile_edges(encoded(2000)[:, :20], 12), CARDINALITIES, 2, (64, 32)).eval()
    final = student.layers[-1]
    assert isinstance(final, torch.nn.Linear)
    with torch.no_grad():
        final.weight.mul_(10)
    return student


@pytest.fixture(scope="module")
def source(student: TabularStudent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantize") / "source.onnx"
    export_onnx(student, encoded(200), path)
    return path


def quantized(source: Path, target: Path, config: DynamicInt8 | StaticInt8) -> Path:
    if isinstance(config, DynamicInt8):
        quantize_dynamic_int8(source, target, config)
    else:
        quantize_static_int8(source, target, config, encoded(1000, seed=1))
    return target


DYNAMIC = DynamicInt8(method="int8_dynamic")
STATIC = StaticInt8(method="int8_static")


@pytest.mark.parametrize("config", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_smaller_and_close(
    source: Path, student: TabularStudent, config: DynamicInt8 | StaticInt8, tmp_path: Path
) -> None:
    target = quantized(source, tmp_path / "int8.onnx", config)
    assert target.stat().st_size < 0.33 * source.stat().st_size
    for count in (1, 1000):
        rows = encoded(count, seed=2)
        wanted, found = probabilities(student, rows), run_onnx(target.read_bytes(), rows)
        assert wanted.std() > 0.05 or count == 1
        np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
        assert np.abs(found - wanted).mean() < 0.02


@pytest.mark.parametrize("config", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_every_large_weight_is_int8_and_the_encoding_is_not(
    source: Path, config: DynamicInt8 | StaticInt8, tmp_path: Path
) -> None:
    graph = onnx.load(quantized(source, tmp_path / "int8.onnx", config)).graph
    bytes_each = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    integers = {tuple(t.dims) for t in graph.initializer if t.data_type in bytes_each}
    floats = {tuple(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert {shape for shape in integers if len(shape) == 2 and 8 in shape} == {(17, 8), (106, 8)}
    assert {64 * 278, 64 * 32, 64} <= {int(np.prod(shape)) for shape in integers}
    assert {shape for shape in floats if len(shape) == 2} <= {(20, 12)}
    assert (20, 12) in floats
    assert {"Sub", "Div", "Clip", "Softmax"} <= {node.op_type for node in graph.node}
    assert "Gemm" not in {node.op_type for node in graph.node}


def test_missing_numbers_and_unknown_categories_survive(source: Path, student: TabularStudent, tmp_path: Path) -> None:
    rows = np.zeros((3, 23), dtype=np.float32)
    rows[0, :20] = np.nan
    rows[1, :20] = 1e30
    for config in (DYNAMIC, STATIC):
        found = run_onnx(quantized(source, tmp_path / "int8.onnx", config).read_bytes(), rows)
        np.testing.assert_allclose(found, probabilities(student, rows), atol=0.1)


def test_settings_reach_the_quantiser(source: Path, tmp_path: Path) -> None:
    def largest(config: DynamicInt8 | StaticInt8) -> int:
        graph = onnx.load(quantized(source, tmp_path / "int8.onnx", config)).graph
        weights = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
        return max(int(np.abs(weight.astype(int)).max()) for weight in weights if weight.size == 64 * 278)

    def scales(config: DynamicInt8 | StaticInt8) -> set[tuple[int, ...]]:
        graph = onnx.load(quantized(source, tmp_path / "int8.onnx", config)).graph
        return {tuple(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}

    for config in (DYNAMIC, STATIC):
        assert largest(config) <= 64
        assert largest(config.model_copy(update={"reduce_range": False})) > 100
    # biases are float32 [64] in the dynamic form whatever the scales are, so only the static one shows them
    assert (64,) in scales(STATIC)
    assert (64,) not in scales(STATIC.model_copy(update={"per_channel": False}))


def test_calibration_rows_cover_the_whole_window(source: Path, tmp_path: Path) -> None:
    early, late = encoded(500, seed=3), encoded(500, seed=3)
    early[:, :20] = np.nan  # as if nothing had been measured yet
    rows = np.vstack([early, late])
    config = StaticInt8(method="int8_static", calibration_rows=100)
    quantize_static_int8(source, tmp_path / "all.onnx", config, rows)
    quantize_static_int8(source, tmp_path / "first.onnx", config, rows[:100])
    assert (tmp_path / "all.onnx").read_bytes() != (tmp_path / "first.onnx").read_bytes()
    quantize_static_int8(source, tmp_path / "same.onnx", config, rows[np.linspace(0, 999, 100).astype(int)])
    assert (tmp_path / "all.onnx").read_bytes() == (tmp_path / "same.onnx").read_bytes()


def test_no_calibration_rows_is_an_error(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="n ≥ 1"):
        quantize_static_int8(source, tmp_path / "int8.onnx", STATIC, encoded(0))


def test_deterministic_silent_and_without_leftovers(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    out.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    for config in (DYNAMIC, STATIC):
        first = quantized(source, out / "a.onnx", config).read_bytes()
        assert quantized(source, out / "b.onnx", config).read_bytes() == first
    assert not list(scratch.iterdir())
    assert sorted(path.name for path in out.iterdir()) == ["a.onnx", "b.onnx"]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
