"""A variant is a folder that stands alone, is whole or absent, and says what it is."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import stillhouse.variant
from stillhouse.compress import variants as module
from stillhouse.compress.export import probabilities
from stillhouse.compress.processor import parse_cpuinfo, processor
from stillhouse.compress.variants import VariantFile, make_variants
from stillhouse.config import DynamicInt8, Fp32, Prune, StaticInt8
from stillhouse.distill.students import TabularStudent, quantile_edges
from stillhouse.errors import ExportError
from stillhouse.variant import Variant, encode

VALUES = {"carrier": 16, "origin": 3, "destination": 105}
COLUMNS: list[dict[str, Any]] = [
    *({"name": f"number_{i}", "type": "number"} for i in range(20)),
    *({"name": n, "type": "category", "values": [f"{n[:2]}{i}" for i in range(v)]} for n, v in VALUES.items()),
]
ALL = (
    Fp32(method="fp32"),
    DynamicInt8(method="int8_dynamic"),
    StaticInt8(method="int8_static"),
    Prune(method="prune", ratio=0.5, recover_epochs=3),
)


def raw(count: int, seed: int = 0) -> pd.DataFrame:
    """Raw rows with missing numbers, missing categories and categories that no student knows."""
    random = np.random.default_rng(seed)
    rows = pd.DataFrame(random.normal(size=(count, 20)), columns=[f"number_{i}" for i in range(20)])
    rows = rows.mask(random.random(rows.shape) < 0.05)
    for name, values in VALUES.items():
        rows[name] = [f"{name[:2]}{i}" for i in random.integers(0, values + 2, count)]
    rows.loc[0, "origin"] = None
    return rows


@pytest.fixture(scope="module")
def student() -> TabularStudent:
    torch.manual_seed(0)
    edges = quantile_edges(encode(raw(2000), COLUMNS)[:, :20], 12)
    return TabularStudent(edges, list(VALUES.values()), 2, (64, 32)).eval()


def unchanged(pruned: nn.Module, epochs: int) -> nn.Module:
    return pruned


def make(student: nn.Module, folder: Path, *compressions: Any, **changes: Any) -> tuple[VariantFile, ...]:
    arguments: dict[str, Any] = {
        "agent": "flights",
        "actions": ("on_time", "late"),
        "columns": COLUMNS,
        "calibration": encode(raw(1000), COLUMNS),
        "recover": unchanged,
        "folder": folder,
        "lineage": {"student": "models:/m-1", "teacher": "abc"},
    } | changes
    return make_variants(student, compressions or ALL, **arguments)


@pytest.fixture(scope="module")
def made(student: TabularStudent, tmp_path_factory: pytest.TempPathFactory) -> dict[str, VariantFile]:
    return {file.name: file for file in make(student, tmp_path_factory.mktemp("variants"))}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_folder_each_and_nothing_else(made: dict[str, VariantFile]) -> None:
    assert list(made) == ["fp32", "int8_dynamic", "int8_static", "pruned_50"]
    assert [file.method for file in made.values()] == ["fp32", "int8_dynamic", "int8_static", "prune"]
    parent = Path(made["fp32"].folder).parent
    assert sorted(path.name for path in parent.iterdir()) == sorted(made)
    for file in made.values():
        files = contents(Path(file.folder))
        assert sorted(files) == ["manifest.json", "model.onnx", "variant.py"]
        assert file.bytes == sum(map(len, files.values()))
        assert files["variant.py"] == Path(stillhouse.variant.__file__).read_bytes()
        assert VariantFile.model_validate_json(file.model_dump_json()) == file


def test_sizes_and_agreement(made: dict[str, VariantFile]) -> None:
    sizes = {name: (Path(file.folder) / "model.onnx").stat().st_size for name, file in made.items()}
    assert max(sizes["int8_dynamic"], sizes["int8_static"]) < 0.33 * sizes["fp32"]
    assert sizes["pruned_50"] < 0.55 * sizes["fp32"]
    assert made["fp32"].agreement.max < 1e-6
    assert made["fp32"].agreement.rows == 1000
    assert 0 < made["int8_dynamic"].agreement.mean < 0.02
    assert 0 < made["int8_static"].agreement.mean < 0.02
    for file in made.values():
        assert file.agreement.mean <= file.agreement.max


def test_the_manifest_says_what_it_is(made: dict[str, VariantFile]) -> None:
    for file in made.values():
        folder = Path(file.folder)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        assert list(manifest) == [
            "format", "agent", "actions", "columns", "lineage", "variant", "method",
            "input", "sha256", "agreement", "cpu", "versions",
        ]  # fmt: skip
        assert manifest["columns"] == COLUMNS
        assert manifest["actions"] == ["on_time", "late"]
        assert manifest["lineage"] == {"student": "models:/m-1", "teacher": "abc"}
        assert (manifest["format"], manifest["variant"], manifest["input"]) == (1, file.name, "x")
        assert manifest["agreement"] == file.agreement.model_dump()
        assert manifest["cpu"]["name"] == processor().name
        assert set(manifest["versions"]) == {"onnxruntime", "onnx", "torch", "stillhouse"}
        for name, digest in manifest["sha256"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert manifest["method"] == {"method": "prune", "ratio": 0.5, "recover_epochs": 3}


ALONE = """
import sys
sys.modules["torch"] = sys.modules["onnx"] = sys.modules["stillhouse"] = None
sys.path.insert(0, sys.argv[1])
import pandas as pd
from variant import Variant
rows = pd.read_json(sys.argv[2], orient="split")
Variant(sys.argv[1]).predict(rows).to_json(sys.argv[3], orient="split", double_precision=15)
"""


@pytest.mark.parametrize("name", ["fp32", "int8_static"])
def test_it_runs_alone_without_torch_and_stillhouse(
    made: dict[str, VariantFile], student: TabularStudent, name: str, tmp_path: Path
) -> None:
    rows = raw(30, seed=5)
    rows.to_json(tmp_path / "rows.json", orient="split", double_precision=15)
    folder = made[name].folder
    command = [sys.executable, "-I", "-B", "-c", ALONE, folder, tmp_path / "rows.json", tmp_path / "out.json"]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120)
    found = pd.read_json(tmp_path / "out.json", orient="split")
    pd.testing.assert_frame_equal(found, Variant(folder).predict(rows), check_dtype=False, atol=1e-6)
    wanted = probabilities(student, encode(rows, COLUMNS))
    np.testing.assert_allclose(found[["p_on_time", "p_late"]], wanted, atol=1e-6 if name == "fp32" else 0.05)


def test_a_damaged_model_is_refused(student: TabularStudent, tmp_path: Path) -> None:
    (file,) = make(student, tmp_path, Fp32(method="fp32"))
    model = Path(file.folder) / "model.onnx"
    damaged = bytearray(model.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    model.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged"):
        Variant(file.folder)
    (again,) = make(student, tmp_path, Fp32(method="fp32"))
    assert again == file
    Variant(file.folder)


def test_the_same_again_gives_the_same_bytes_and_touches_nothing(student: TabularStudent, tmp_path: Path) -> None:
    first = make(student, tmp_path / "one")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*")}
    assert make(student, tmp_path / "one") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.*")}.items() <= before.items()
    make(student, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_other_contents_replace_a_finished_variant(student: TabularStudent, tmp_path: Path) -> None:
    make(student, tmp_path, Fp32(method="fp32"))
    make(student, tmp_path, Fp32(method="fp32"), lineage={"student": "models:/m-2"})
    assert Variant(tmp_path / "fp32").manifest["lineage"] == {"student": "models:/m-2"}
    assert [path.name for path in tmp_path.iterdir()] == ["fp32"]


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
import test_variants as t
import torch
from pathlib import Path
from stillhouse.compress import variants

def die(*arguments):
    os._exit(9)

variants._write_manifest = die
torch.manual_seed(0)
t.make(t.TabularStudent(torch.linspace(-1, 1, 13).repeat(20, 1), list(t.VALUES.values()), 2, (8,)), Path(sys.argv[2]))
"""


def test_a_killed_process_leaves_no_half_variant(student: TabularStudent, tmp_path: Path) -> None:
    folder = tmp_path / "variants"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(folder)], check=False, timeout=120
    )
    assert killed.returncode == 9
    assert [path.name for path in folder.iterdir()] == [".unfinished"]
    assert any(path.name == "model.onnx" for path in folder.rglob("*"))
    make(student, folder, Fp32(method="fp32"))
    assert [path.name for path in folder.iterdir()] == ["fp32"]
    Variant(folder / "fp32")


def test_a_half_written_folder_is_replaced(student: TabularStudent, tmp_path: Path) -> None:
    half = tmp_path / "fp32"
    half.mkdir()
    (half / "model.onnx").write_bytes(b"half")
    make(student, tmp_path, Fp32(method="fp32"))
    Variant(half)


def test_a_failure_midway_leaves_finished_variants_and_no_workplace(student: TabularStudent, tmp_path: Path) -> None:
    def fail(pruned: nn.Module, epochs: int) -> nn.Module:
        raise OSError("the teacher does not answer")

    with pytest.raises(OSError, match="teacher"):
        make(student, tmp_path, Fp32(method="fp32"), Prune(method="prune"), recover=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["fp32"]


def test_a_pruned_student_is_recovered_by_the_caller(student: TabularStudent, tmp_path: Path) -> None:
    calls = []

    def recover(pruned: nn.Module, epochs: int) -> nn.Module:
        calls.append((pruned.spec["widths"], epochs))
        with torch.no_grad():
            pruned.layers[-1].bias.copy_(torch.tensor([0.0, 50.0]))
        return pruned

    for epochs, ratio in ((7, 0.25), (0, 0.5)):
        make(student, tmp_path, Prune(method="prune", ratio=ratio, recover_epochs=epochs), recover=recover)
    assert calls == [([48, 24], 7)]
    assert (Variant(tmp_path / "pruned_25").predict(raw(20)).action == "late").all()
    assert student.spec["widths"] == [64, 32]


def test_an_unknown_compression_is_a_type_error(student: TabularStudent, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no compression method for dict"):
        module._compress({"method": "fp32"}, None, tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": ("a", "b", "c")}, "2 logits, but there are 3 actions"),
        ({"columns": COLUMNS[:-1]}, "23 values, but the columns make 22"),
        ({"calibration": np.zeros((0, 23), np.float32)}, "n ≥ 1"),
    ],
)
def test_what_does_not_fit_is_refused(
    student: TabularStudent, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        make(student, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_probabilities_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       student: TabularStudent) -> None:  # fmt: skip
    monkeypatch.setattr(module, "run_onnx", lambda model, rows: np.full((len(rows), 2), np.nan, np.float32))
    with pytest.raises(ExportError, match="variant fp32 gives probabilities that are not finite on 1000 of 1000"):
        make(student, tmp_path)
    assert not list(tmp_path.iterdir())


def test_processor() -> None:
    x86 = "processor\t: 0\nmodel name\t: AMD EPYC 7763\nflags\t\t: fpu fma avx2 avx rdrand\n\nmodel name\t: other\n"
    assert parse_cpuinfo(x86).model_dump() == {"name": "AMD EPYC 7763", "flags": ("avx", "avx2", "fma")}
    assert parse_cpuinfo("Features\t: fp asimd i8mm\n").flags == ("asimd", "i8mm")
    assert parse_cpuinfo("").name
    assert parse_cpuinfo("").flags == ()
    assert processor().name
