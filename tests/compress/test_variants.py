"""A variant is a folder that runs alone and describes itself in its manifest."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from torch import nn

import stillhouse.variant
from stillhouse.compress.build import BuiltModel, build_model, export_state
from stillhouse.compress.export import run_onnx, run_torch
from stillhouse.compress.processor import Processor, processor
from stillhouse.compress.search.candidates import CandidateBuilder
from stillhouse.compress.target import CompressionTarget, ModelState
from stillhouse.compress.variants import target_from_student, variant_writer
from stillhouse.config import DynamicInt8, Fp32, LowRank, PruneColumns, PruneUnits, Recipe, StaticInt8, recipe_name
from stillhouse.distill.students import TabularStudent, quantile_edges
from stillhouse.errors import ExportError
from stillhouse.records import CompressionCandidate
from stillhouse.variant import Variant, encode, parse_cpuinfo

VALUES = {"carrier": 16, "origin": 3, "destination": 105}
COLUMNS: list[dict[str, Any]] = [
    *({"name": f"number_{i}", "type": "number"} for i in range(20)),
    *({"name": n, "type": "category", "values": [f"{n[:2]}{i}" for i in range(v)]} for n, v in VALUES.items()),
]
ACTIONS = ("on_time", "late")
LINEAGE = {"student": "models:/m-1", "teacher": "abc"}
ALL: tuple[Recipe, ...] = (
    (Fp32(method="fp32"),),
    (DynamicInt8(method="int8_dynamic"),),
    (StaticInt8(method="int8_static"),),
    (PruneUnits(method="prune_units", ratio=0.5, recover_epochs=0),),
    (PruneColumns(method="prune_columns", ratio=0.2, recover_epochs=0), StaticInt8(method="int8_static")),
)
NAMES = ["fp32", "int8_dynamic", "int8_static", "units50", "columns20+int8_static"]


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


def make_target(student: nn.Module, **changes: Any) -> CompressionTarget:
    settings: dict[str, Any] = {
        "calibration": lambda columns: encode(raw(1000), columns),
        "validation": lambda columns: encode(raw(100, 1), columns),
        "quality": lambda p: float(p[:, 0].mean()),
    }
    columns, actions = changes.pop("columns", COLUMNS), changes.pop("actions", ACTIONS)
    return target_from_student(student, columns, actions, **settings | changes)


@pytest.fixture(scope="module")
def target(student: TabularStudent) -> CompressionTarget:
    return make_target(student)


def make(
    target: CompressionTarget, folder: Path, *recipes: Recipe, lineage: dict[str, str] = LINEAGE
) -> dict[str, CompressionCandidate]:
    builder = CandidateBuilder(target, variant_writer("flights", ACTIONS, lineage), folder, 0.05)
    return {recipe_name(recipe): builder.build(recipe) for recipe in recipes or ALL}


@pytest.fixture(scope="module")
def candidates(target: CompressionTarget, tmp_path_factory: pytest.TempPathFactory) -> dict[str, CompressionCandidate]:
    return make(target, tmp_path_factory.mktemp("variants"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_variant_folder_has_exactly_the_files_that_a_device_needs(
    candidates: dict[str, CompressionCandidate],
) -> None:
    assert list(candidates) == NAMES and not {candidate.refused for candidate in candidates.values()} - {None}
    for candidate in candidates.values():
        files = contents(Path(candidate.folder))
        assert sorted(files) == ["manifest.json", "model.onnx", "values.py", "variant.py"]
        assert candidate.bytes == sum(map(len, files.values()))
        for name in ("values.py", "variant.py"):
            assert files[name] == Path(stillhouse.variant.__file__).with_name(name).read_bytes()
        model = onnx.load_model_from_string(files["model.onnx"])
        assert not any(node.name or node.doc_string for node in model.graph.node)


def test_sizes_and_agreement(candidates: dict[str, CompressionCandidate]) -> None:
    sizes = {name: (Path(candidate.folder) / "model.onnx").stat().st_size for name, candidate in candidates.items()}
    assert max(sizes["int8_dynamic"], sizes["int8_static"]) < 0.33 * sizes["fp32"]
    assert sizes["units50"] < 0.55 * sizes["fp32"] and sizes["columns20+int8_static"] < sizes["int8_static"]
    actual = {name: Variant(candidate.folder).manifest["agreement"] for name, candidate in candidates.items()}
    assert actual["fp32"]["max"] < 1e-6
    for name, candidate in actual.items():
        assert candidate["rows"] == 1000 and candidate["mean"] <= candidate["max"]
        assert candidate["mean"] == candidates[name].difference
    assert 0 < actual["int8_dynamic"]["mean"] < 0.02 and 0 < actual["int8_static"]["mean"] < 0.02


def test_the_manifest_describes_the_variant(candidates: dict[str, CompressionCandidate]) -> None:
    for name, candidate in candidates.items():
        folder = Path(candidate.folder)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        assert list(manifest) == [
            "format",
            "agent",
            "actions",
            "columns",
            "lineage",
            "variant",
            "method",
            "input",
            "sha256",
            "agreement",
            "saturates",
            "cpu",
            "versions",
        ]
        assert manifest["actions"] == ["on_time", "late"] and manifest["agent"] == "flights"
        assert manifest["lineage"] == LINEAGE
        assert (manifest["format"], manifest["variant"], manifest["input"]) == (2, name, "x")
        assert manifest["method"] == list(candidate.recipe)
        assert manifest["saturates"] == [candidate.model_dump() for candidate in candidate.saturates]
        assert Processor.model_validate(manifest["cpu"]) == processor()
        assert set(manifest["versions"]) == {"onnxruntime", "onnx", "torch", "stillhouse"}
        for file, digest in manifest["sha256"].items():
            assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
    assert Variant(candidates["fp32"].folder).columns == COLUMNS
    assert manifest["method"][0] == {
        "method": "prune_columns",
        "ratio": 0.2,
        "recover_epochs": 0,
        "recover_rounds": 1,
    }


def test_removed_columns_are_not_read(candidates: dict[str, CompressionCandidate]) -> None:
    """Of 23 columns five; the others mean what they meant."""
    variant = Variant(candidates["columns20+int8_static"].folder)
    names = [column["name"] for column in variant.columns]
    assert len(names) == 18 and [column for column in COLUMNS if column["name"] in names] == variant.columns
    rows = raw(50, 3)
    pd.testing.assert_frame_equal(variant.predict(rows[names]), variant.predict(rows))


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
    candidates: dict[str, CompressionCandidate], student: TabularStudent, name: str, tmp_path: Path
) -> None:
    rows = raw(30, seed=5)
    rows.to_json(tmp_path / "rows.json", orient="split", double_precision=15)
    folder = candidates[name].folder
    command = [sys.executable, "-I", "-B", "-c", ALONE, folder, tmp_path / "rows.json", tmp_path / "out.json"]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=120)
    actual = pd.read_json(tmp_path / "out.json", orient="split")
    pd.testing.assert_frame_equal(actual, Variant(folder).predict(rows), check_dtype=False, atol=1e-6)
    reference_probs = run_torch(student, {"x": encode(rows, COLUMNS)})
    np.testing.assert_allclose(actual[["p_on_time", "p_late"]], reference_probs, atol=1e-6 if name == "fp32" else 0.05)


def test_a_damaged_model_is_refused(candidates: dict[str, CompressionCandidate], tmp_path: Path) -> None:
    for name, content in contents(Path(candidates["fp32"].folder)).items():
        damaged = bytearray(content)
        damaged[len(damaged) // 2] ^= name == "model.onnx"
        (tmp_path / name).write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged"):
        Variant(tmp_path)


def test_the_same_again_gives_the_same_bytes(
    candidates: dict[str, CompressionCandidate], target: CompressionTarget, tmp_path: Path
) -> None:
    for name, again in make(target, tmp_path).items():
        assert contents(Path(again.folder)) == contents(Path(candidates[name].folder))


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
from tests.compress import test_variants as t
from stillhouse.compress import variants

def die(*arguments):
    os._exit(9)

variants.write_manifest = die
torch.manual_seed(0)
student = t.TabularStudent(torch.linspace(-1, 1, 13).repeat(20, 1), list(t.VALUES.values()), 2, (8,))
t.make(t.make_target(student), Path(sys.argv[2]), t.ALL[0])
"""


def test_a_killed_process_leaves_no_half_variant(tmp_path: Path) -> None:
    program = [sys.executable, "-c", KILLED, str(Path(__file__).parents[2]), str(tmp_path)]
    killed = subprocess.run(program, check=False, timeout=120)
    assert killed.returncode == 9
    assert [path.name for path in tmp_path.iterdir()] == ["aside"]
    assert any(path.name == "model.onnx" for path in tmp_path.rglob("*"))
    torch.manual_seed(0)
    student = TabularStudent(torch.linspace(-1, 1, 13).repeat(20, 1), list(VALUES.values()), 2, (8,))
    (again,) = make(make_target(student), tmp_path, ALL[0]).values()
    Variant(again.folder)
    assert not list((tmp_path / "aside").iterdir())


def test_a_pruned_student_is_recovered_by_the_caller(student: TabularStudent, tmp_path: Path) -> None:
    calls = []

    def recover(state: ModelState, epochs: int) -> ModelState:
        module: Any = state.module
        calls.append(([layer.out_features for layer in module.layers if isinstance(layer, nn.Linear)], epochs))
        with torch.no_grad():
            module.layers[-1].bias.copy_(torch.tensor([0.0, 50.0]))
        return state

    recipes = [(PruneUnits(method="prune_units", ratio=r, recover_epochs=e),) for e, r in ((7, 0.25), (0, 0.5))]
    actual = make(make_target(student, recover=recover), tmp_path, *recipes)
    assert calls == [([48, 24, 2], 7)]
    assert (Variant(actual["units25"].folder).predict(raw(20)).action == "late").all()
    assert [layer.out_features for layer in student.layers if isinstance(layer, nn.Linear)] == [64, 32, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": ("a", "b", "c")}, "2 logits, but there are 3 actions"),
        (
            {"columns": COLUMNS[:-1], "calibration": lambda columns: encode(raw(9), COLUMNS)},
            "23 values, but the columns make 22",
        ),
        ({"calibration": lambda columns: np.zeros((0, 23), np.float32)}, "n ≥ 1"),
    ],
)
def test_what_does_not_fit_is_refused(student: TabularStudent, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        make_target(student, **changes)


def built(target: CompressionTarget, recipe: Recipe, tolerance: float = 0.05) -> BuiltModel:
    reference_probs = target.to_probabilities(run_onnx(target.model, target.calibration(COLUMNS)))
    return build_model(target, recipe, target.model, COLUMNS, tolerance, reference_probs)


def test_a_recipe_without_a_number_format_stays_float32(target: CompressionTarget) -> None:
    low = LowRank(method="low_rank", ratio=0.5)
    assert built(target, (low,)).model == target.model == built(target, (low, Fp32(method="fp32"))).model
    assert export_state(target, ModelState(target.state.module, COLUMNS)) == target.model  # type: ignore[union-attr]


def test_the_tolerance_is_the_number_formats_alone(target: CompressionTarget) -> None:
    """A structural step may change the answers as much as it likes: its quality is judged."""
    actual = built(target, (DynamicInt8(method="int8_dynamic"),))
    with pytest.raises(
        ExportError, match=r"int8_dynamic differs from its float32 form by .* \(`compression.tolerance`"
    ):
        built(target, (DynamicInt8(method="int8_dynamic"),), actual.agreement.mean * 0.99)
    other = np.random.default_rng(0).normal(size=64).astype(np.float32)
    strange = onnx.ModelProto()
    strange.CopyFrom(target.model)
    (bias,) = (candidate for candidate in strange.graph.initializer if list(candidate.dims) == [64])
    bias.raw_data = (10 * other).tobytes()
    reference_probs = target.to_probabilities(run_onnx(target.model, target.calibration(COLUMNS)))
    far = build_model(target, (Fp32(method="fp32"),), strange, COLUMNS, 1e-9, reference_probs)
    assert far.agreement.mean > 0.01
    with pytest.raises(ExportError, match="differs"):
        build_model(target, (DynamicInt8(method="int8_dynamic"),), strange, COLUMNS, 1e-9, reference_probs)


def test_processor() -> None:
    x86 = "processor\t: 0\nmodel name\t: AMD EPYC 7763\nflags\t\t: fpu fma avx2 avx rdrand\n\nmodel name\t: other\n"
    assert parse_cpuinfo(x86) == {"name": "AMD EPYC 7763", "flags": ["avx", "avx2", "fma"]}
    assert parse_cpuinfo("Features\t: fp asimd i8mm\n")["flags"] == ["asimd", "i8mm"]
    assert parse_cpuinfo("")["name"] and parse_cpuinfo("")["flags"] == []
    assert processor().name and processor() == Processor.model_validate(stillhouse.variant.processor())


@pytest.mark.parametrize(
    ("flags", "sums_whole"),
    [
        (("avx", "avx2"), False),
        (("avx", "avx2", "avx512f"), False),
        (("avx",), False),
        (("avx", "avx2", "avx512f", "avx512_vnni"), True),
        (("avx", "avx2", "avx_vnni"), True),
        (("asimd", "asimddp"), True),
        ((), True),
    ],
)
def test_processors_that_sum_without_saturation(flags: tuple[str, ...], sums_whole: bool) -> None:
    assert Processor(name="p", flags=flags).sums_without_saturation is sums_whole
