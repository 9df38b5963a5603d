"""Raw rows are encoded as the student's matrix, on the device as in training."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
import textwrap
import uuid
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from onnx import TensorProto, helper

from stillhouse import variant
from stillhouse.compress.variants import copy_code
from stillhouse.values import text_of
from stillhouse.variant import Encoder, InputError, Variant, encode

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


def test_columns_are_in_the_order_of_the_model() -> None:
    rows = frame(extra=["x", None])[["gate", "extra", "origin", "wind", "temp"]]
    expect(rows, [1.5, 3, 2, 1], [-2, 4, 1, 2])


def test_missing_and_unknown() -> None:
    rows = frame(temp=[NAN, None], origin=["SFO", None], gate=[NAN, "2"])
    expect(rows, [NAN, 3, 0, 0], [NAN, 4, 0, 2])


@pytest.mark.parametrize("value", [None, NAN, pd.NA])
def test_all_missing_values(value: object) -> None:
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


# --------------------------------------------------------------------------- every input form

ROW = {"temp": 1.5, "wind": 3, "origin": "JFK", "gate": "1"}
VALUES = [
    "1.0",
    1,
    1.0,
    True,
    False,
    0,
    np.int64(7),
    np.uint8(7),
    np.float32(0.1),
    np.float64(0.25),
    np.bool_(True),
    2**70,
    Decimal("1.50"),
    Decimal("2"),
    date(2024, 5, 1),
    datetime(2024, 5, 1, 12, tzinfo=UTC),
    time(9, 30),
    pd.Timestamp("2024-05-01T12:00:00Z"),
    np.datetime64("2024-05-01"),
    uuid.UUID(int=7),
    np.str_("text"),
    "",
    " ",
    None,
    NAN,
    np.nan,
    pd.NA,
    pd.NaT,
]


@pytest.mark.parametrize("value", VALUES, ids=[f"{type(value).__name__}-{value}" for value in VALUES])
def test_a_category_is_the_same_text_in_every_way_in(value: Any) -> None:
    """The text equals that of training, where a whole column is read."""
    text = text_of(value)
    encoder = Encoder([{"name": "it", "type": "category", "values": ["other", *([] if text is None else [text])]}])
    code = 0 if text is None else 2
    column = pd.Series([value], dtype=object)
    assert encoder({"it": value}).tolist() == [[code]]
    assert encoder([{"it": value}, {"it": "other"}]).tolist() == [[code], [1]]
    assert encoder({"it": [value, "other"]}).tolist() == [[code], [1]]
    assert encoder({"it": np.array([value], dtype=object)}).tolist() == [[code]]
    for n in (1, 2, 1001):
        frame_of_n = pd.DataFrame({"it": pd.concat([column] * n, ignore_index=True), "beside": 1.5})
        assert encoder(frame_of_n).ravel().tolist() == [code] * n


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "float64",
        "int8",
        "uint64",
        "bool",
        "Int64",
        "boolean",
        "Float32",
        "int64[pyarrow]",
        "category",
        "datetime64[ns]",
        "datetime64[ns, UTC]",
    ],
)
def test_a_typed_column_reads_as_its_values_do(dtype: str) -> None:
    column = pd.Series([1, 0, 1], dtype="int64").astype(dtype)
    texts = list(dict.fromkeys(text_of(value) for value in column))
    encoder = Encoder([{"name": "it", "type": "category", "values": texts}])
    expected = [[1.0], [2.0], [1.0]]
    for frame in (pd.DataFrame({"it": column}), pd.DataFrame({"it": column, "beside": [0.5, 1.5, 2.5], "x": "y"})):
        assert encoder(frame).tolist() == expected
        assert [encoder(frame.iloc[i : i + 1]).tolist()[0] for i in range(3)] == expected
        assert encoder(pd.concat([frame] * 400)).tolist() == expected * 400
    assert encoder({"it": column}).tolist() == encoder({"it": column.tolist()}).tolist() == expected


def test_a_float32_keeps_its_shortest_text_in_every_frame() -> None:
    encoder = Encoder([{"name": "it", "type": "category", "values": ["0.1"]}])
    frame = pd.DataFrame({"it": np.float32([0.1] * 1001), "said": "x"})
    for n in (1, 2, 1001):
        assert encoder(frame.head(n)).ravel().tolist() == [1.0] * n


def test_rows_as_mappings_lists_columns_and_frames_give_one_matrix() -> None:
    rows = [ROW, {**ROW, "temp": None, "origin": None, "extra": [1]}, {**ROW, "wind": "4", "gate": 2}]
    expected = np.array([[1.5, 3, 2, 1], [NAN, 3, 0, 1], [1.5, 4, 2, 2]], np.float32)
    np.testing.assert_array_equal(encode(rows, COLUMNS), expected)
    np.testing.assert_array_equal(encode(tuple(rows), COLUMNS), expected)
    np.testing.assert_array_equal(np.vstack([encode(row, COLUMNS) for row in rows]), expected)
    np.testing.assert_array_equal(encode(pd.DataFrame(rows), COLUMNS), expected)
    columns = {name: [row[name] for row in rows] for name in ROW}
    np.testing.assert_array_equal(encode(columns, COLUMNS), expected)
    np.testing.assert_array_equal(
        encode({name: np.array(values, object) for name, values in columns.items()}, COLUMNS), expected
    )


def test_an_id_of_any_width_stays_whole_beside_numbers() -> None:
    columns = [{"name": "temp", "type": "number"}, {"name": "id", "type": "category", "values": [str(2**53 + 1)]}]
    for n in (1, 2, 1001):
        rows = pd.DataFrame({"temp": [0.5] * n, "id": [2**53 + 1] * n})
        assert encode(rows, columns)[:, 1].tolist() == [1.0] * n


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"temp": 1.0, "wind": 2.0}, r"missing columns \['origin', 'gate'\]; the rows have \['temp', 'wind'\]"),
        ([ROW, {"temp": 1.0}], r"row 1: missing columns \['wind', 'origin', 'gate'\]"),
        ([ROW, "text"], "row 1: must be a mapping by column, and is a str"),
        ([[1.0, 2.0, "JFK", "1"]], "must be a mapping by column, and is a list"),
        (np.zeros((1, 4)), "a ndarray has no rows by column"),
        (pd.Series(ROW), "a Series has no rows by column"),
        ("text", "row 0: must be a mapping by column, and is a str"),
        ({**ROW, "wind": "calm"}, "column 'wind' must be numeric: 'calm'"),
        ({**ROW, "wind": [3]}, "column 'wind' must be numeric"),
        ({**ROW, "wind": np.timedelta64(1, "s")}, "column 'wind' must be numeric"),
        ({**ROW, "wind": np.inf}, "column 'wind' holds infinite values"),
        ({**ROW, "wind": 10**400}, "too large"),
        ({name: [10**400 if name == "wind" else value] for name, value in ROW.items()}, "column 'wind' .* too large"),
        ({**ROW, "gate": ["1"]}, "column 'gate': the list"),
        ({**ROW, "gate": b"1"}, "column 'gate': the bytes"),
        ({**ROW, "gate": 2.0**53}, "column 'gate': .*2\\^53"),
        ({name: [value] * (1 + (name == "gate")) for name, value in ROW.items()}, "different lengths"),
        ({**ROW, "temp": [1.0]}, "some columns are lists and some are not"),
    ],
)
def test_unreadable_rows_are_named(rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode(rows, COLUMNS)


def test_two_columns_of_one_name_are_refused() -> None:
    rows = pd.concat([frame(), frame()[["wind"]]], axis=1)
    with pytest.raises(InputError, match="several columns are called 'wind'"):
        encode(rows, COLUMNS)
    assert encode(pd.concat([frame(), pd.DataFrame([[1, 2]] * 2, columns=["x", "x"])], axis=1), COLUMNS).shape == (2, 4)


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
        "variant": "int8_static",
        "actions": ["stay", "move"],
        "columns": COLUMNS[:2],
        "sha256": {"model.onnx": hashlib.sha256(model.SerializeToString()).hexdigest()},
        "cpu": {"name": "Old", "flags": ["avx2", "avx512_vnni"]},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    copy_code(tmp_path)
    return tmp_path


def serves_on(monkeypatch: pytest.MonkeyPatch, name: str, *flags: str) -> None:
    monkeypatch.setattr(variant, "processor", lambda: {"name": name, "flags": list(flags)})


def test_a_variant_on_the_processor_that_it_was_measured_on_does_not_warn(
    folder: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    serves_on(monkeypatch, "Old", "avx2", "avx512_vnni")
    decisions = Variant(folder).predict(frame())
    assert decisions["action"].tolist() == ["move", "move"] and not recwarn.list


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("New", ("avx2", "avx512_vnni"), "serves on New: its latency"),
        ("New", ("avx2",), "serves on New, which lacks avx512_vnni: its latency"),
        ("New", ("asimd",), "serves on New, which lacks avx2, avx512_vnni: its latency"),
        ("Old", ("avx2", "avx512_vnni", "amx_int8"), "serves on Old: its latency"),
    ],
)
def test_a_variant_on_another_processor_warns_and_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, flags: tuple[str, ...], message: str
) -> None:
    serves_on(monkeypatch, name, *flags)
    with pytest.warns(UserWarning, match=r"variant 'int8_static' was measured on Old and ") as caught:
        loaded = Variant(folder)
    (warning,) = caught.list
    assert message in str(warning.message) and Path(warning.filename).name == Path(__file__).name
    assert loaded.predict(frame())["action"].tolist() == ["move", "move"]


def test_a_manifest_without_a_processor_does_not_warn(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
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


def test_numpy_and_onnxruntime_are_enough_to_decide(folder: Path) -> None:
    program = """
        import importlib.util, sys
        sys.modules |= dict.fromkeys(["pandas", "pyarrow", "stillhouse", "torch", "mlflow"])
        spec = importlib.util.spec_from_file_location("anything", sys.argv[1] + "/variant.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        variant = module.Variant(sys.argv[1])
        decided = variant.decide({"temp": 0.0, "wind": 1})
        assert decided.action == "move" and list(decided.probabilities) == ["stay", "move"]
        several = variant.decide([{"temp": 0.0, "wind": 1}, {"temp": 5, "wind": True}])
        assert [decision.action for decision in several] == ["move", "stay"] and several[0] == decided
        assert variant.decide([]) == [] and variant.predict_proba([]).shape == (0, 2)
        assert variant.predict_proba({"temp": [0.0, 5.0], "wind": [1, 1]}).shape == (2, 2)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), str(folder)],
        cwd=folder,
        env={},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_frame_comes_out_of_rows_of_any_form(folder: Path) -> None:
    loaded = Variant(folder)
    rows = [{"temp": 0.0, "wind": 1.0}, {"temp": 5.0, "wind": 1.0}]
    expected = loaded.predict(pd.DataFrame(rows))
    assert expected.columns.tolist() == ["action", "p_stay", "p_move"] and expected["action"].tolist() == [
        "move",
        "stay",
    ]
    pd.testing.assert_frame_equal(loaded.predict(rows), expected)
    pd.testing.assert_frame_equal(loaded.predict({"temp": [0.0, 5.0], "wind": [1, 1]}), expected)
    pd.testing.assert_frame_equal(loaded.predict(rows[0]), expected.head(1))
    indexed = loaded.predict(pd.DataFrame(rows, index=["a", "b"]))
    assert indexed.index.tolist() == ["a", "b"]
    assert loaded.predict(pd.DataFrame(rows).iloc[:0]).empty
