"""Raw rows become the student's matrix: the same on the device as in training."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from onnx import TensorProto, helper

from stillhouse import variant
from stillhouse.variant import InputError, Variant, encode

COLUMNS: list[dict[str, Any]] = [
    {"name": "temp", "type": "number"},
    {"name": "wind", "type": "number"},
    {"name": "origin", "type": "category", "values": ["EWR", "JFK", "LGA"]},
    {"name": "gate", "type": "category", "values": ["1", "2"]},
]
NAN = float("nan")


def frame(**columns: Any) -> pd.DataFrame:
    ordinary = {"temp": [1.5, -2.0], "wind": [3, 4], "origin": ["JFK", "EWR"], "gate": ["1", "2"]}
    return pd.DataFrame({**ordinary, **columns})


def expect(rows: pd.DataFrame, *values: list[float]) -> None:
    matrix = encode(rows, COLUMNS)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, np.array(values, dtype=np.float32).reshape(-1, 4))


def test_by_hand() -> None:
    expect(frame(), [1.5, 3, 2, 1], [-2, 4, 1, 2])


def test_the_order_is_the_models_and_not_the_frames() -> None:
    rows = frame(extra=["x", None])[["gate", "extra", "origin", "wind", "temp"]]
    expect(rows, [1.5, 3, 2, 1], [-2, 4, 1, 2])


def test_missing_and_unknown() -> None:
    rows = frame(temp=[NAN, None], origin=["SFO", None], gate=[NAN, "2"])
    expect(rows, [NAN, 3, 0, 0], [NAN, 4, 0, 2])


@pytest.mark.parametrize("value", [None, NAN, pd.NA])
def test_every_way_to_say_missing(value: object) -> None:
    objects = {name: pd.Series([value, value], dtype=object) for name in ("temp", "origin")}
    expect(frame(**objects), [NAN, 3, 0, 1], [NAN, 4, 0, 2])


def test_missing_is_not_the_text_nan() -> None:
    columns = [{"name": "origin", "type": "category", "values": ["nan", "None", "<NA>"]}]
    rows = pd.DataFrame({"origin": pd.Series([NAN, None, pd.NA, "nan", "None", "<NA>"], dtype=object)})
    assert encode(rows, columns).ravel().tolist() == [0, 0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    "dtypes",
    [
        {"temp": "Float64", "wind": "Int64", "origin": "string", "gate": "string"},
        {"temp": "float32", "wind": "int8", "origin": "category", "gate": "category"},
        {"temp": "object", "wind": "object", "origin": "object", "gate": "object"},
        {"temp": "double[pyarrow]", "wind": "int64[pyarrow]", "origin": "string[pyarrow]", "gate": "Int64"},
    ],
)
def test_dtypes(dtypes: dict[str, str]) -> None:
    expect(frame().astype(dtypes), [1.5, 3, 2, 1], [-2, 4, 1, 2])


def test_missing_in_nullable_dtypes() -> None:
    rows = frame(
        temp=pd.array([None, 2.5], dtype="Float64"),
        wind=pd.array([7, None], dtype="Int64"),
        origin=pd.array([None, "LGA"], dtype="string"),
        gate=pd.array([2, None], dtype="Int64"),
    )
    expect(rows, [NAN, 7, 0, 2], [2.5, NAN, 3, 0])


def test_a_category_of_numbers_is_read_as_text_as_in_training() -> None:
    expect(frame(gate=[2, 1]), [1.5, 3, 2, 2], [-2, 4, 1, 1])
    expect(frame(gate=[True, 9]), [1.5, 3, 2, 0], [-2, 4, 1, 0])


def test_truth_values_are_numbers() -> None:
    expect(frame(wind=[True, False]), [1.5, 1, 2, 1], [-2, 0, 1, 2])


def test_no_rows() -> None:
    assert encode(frame().iloc[:0], COLUMNS).shape == (0, 4)
    assert encode(pd.DataFrame(columns=["temp", "wind", "origin", "gate"]), COLUMNS).shape == (0, 4)


def test_missing_columns_are_named() -> None:
    with pytest.raises(InputError, match=r"missing columns \['wind', 'gate'\]; the rows have \['temp', 'origin'\]"):
        encode(frame()[["temp", "origin"]], COLUMNS)


def test_text_in_a_number_column_is_named() -> None:
    with pytest.raises(InputError, match=r"column 'wind' must be numeric: .*calm"):
        encode(frame(wind=["calm", "3"]), COLUMNS)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39])
@pytest.mark.filterwarnings("ignore:overflow")
def test_what_float32_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="column 'temp' holds infinite values"):
        encode(frame(temp=[1.0, value]), COLUMNS)


@pytest.mark.parametrize("value", [datetime(2013, 1, 1), datetime(2013, 1, 1, tzinfo=UTC), pd.Timedelta("1h"), 1j])
def test_a_moment_is_no_number(value: object) -> None:
    with pytest.raises(InputError, match="column 'wind' must be numeric"):
        encode(frame(wind=[value, value]), COLUMNS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A variant that was measured on the processor ``Old`` with AVX2 and VNNI."""
    node = helper.make_node("Softmax", ["x"], ["p"])
    x, p = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xp")
    model = helper.make_model(
        helper.make_graph([node], "tiny", [x], [p]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    manifest = {
        "variant": "int8_static", "actions": ["stay", "move"], "columns": COLUMNS[:2],
        "sha256": {"model.onnx": hashlib.sha256(model.SerializeToString()).hexdigest()},
        "cpu": {"name": "Old", "flags": ["avx2", "avx512_vnni"]},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def serves_on(monkeypatch: pytest.MonkeyPatch, name: str, *flags: str) -> None:
    monkeypatch.setattr(variant, "processor", lambda: {"name": name, "flags": list(flags)})


def test_a_variant_on_the_processor_that_it_was_measured_on_is_silent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    serves_on(monkeypatch, "Old", "avx2", "avx512_vnni")
    found = Variant(folder).predict(frame())
    assert found["action"].tolist() == ["move", "move"] and not recwarn.list


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("New", ("avx2", "avx512_vnni"), "serves on New: its latency"),
        ("New", ("avx2",), "serves on New, which lacks avx512_vnni: its latency"),
        ("New", ("asimd",), "serves on New, which lacks avx2, avx512_vnni: its latency"),
        ("Old", ("avx2", "avx512_vnni", "amx_int8"), "serves on Old: its latency"),
    ],
)
def test_a_variant_on_another_processor_warns_and_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, flags: tuple[str, ...], said: str
) -> None:
    serves_on(monkeypatch, name, *flags)
    with pytest.warns(UserWarning, match=r"variant 'int8_static' was measured on Old and ") as told:
        made = Variant(folder)
    (warning,) = told.list
    assert said in str(warning.message) and Path(warning.filename).name == Path(__file__).name
    assert made.predict(frame())["action"].tolist() == ["move", "move"]


def test_a_manifest_that_names_no_processor_is_no_trouble(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["cpu"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    Variant(folder)
    assert not recwarn.list


@pytest.mark.parametrize("name", ["variant.py", "values.py"])
def test_nothing_of_stillhouse_is_needed(name: str) -> None:
    nodes = list(ast.walk(ast.parse(Path(variant.__file__).with_name(name).read_text())))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    rooms = {name.split(".")[0] for name in named} - set(sys.stdlib_module_names)
    assert rooms <= {"numpy", "pandas", "onnxruntime"}
    beside = [alias.name for node in nodes if isinstance(node, ast.ImportFrom) and node.level for alias in node.names]
    assert beside == (["values"] if name == "variant.py" else [])
