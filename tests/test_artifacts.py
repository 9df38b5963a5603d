"""Model files of unknown origin: data is read, everything else is refused before a library opens it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from stillhouse.artifacts import require_own_tensors, sanitize_program
from stillhouse.errors import PartError

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
ROWS = torch.randn(4, 6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.register_buffer("shift", torch.arange(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.gelu(self.norm(self.layer(x)), approximate="tanh")
        return hidden.reshape(-1, 2, 4).sum(1)[:, :3] + self.shift


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The records of an honest program."""
    file = tmp_path_factory.mktemp("program") / "model.pt2"
    rows = {0: torch.export.Dim("n")}
    torch.export.save(torch.export.export(Net().eval(), (ROWS,), dynamic_shapes=(rows,)), file)
    with zipfile.ZipFile(file) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(folder: Path, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    file = folder / "model.pt2"
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(f"model/{name}", content)
    return file


def edit(records: dict[str, bytes], name: str, change: Callable[[Any], None]) -> dict[str, bytes]:
    content = json.loads(records[name])
    change(content)
    return records | {name: json.dumps(content).encode()}


def nodes(model: Any) -> Any:
    return model["graph_module"]["graph"]["nodes"]


def test_a_valid_program_computes_the_same(program: dict[str, bytes], tmp_path: Path) -> None:
    file = write(tmp_path, program)
    expected = torch.export.load(file).module()(ROWS)
    checked = sanitize_program(file)
    with zipfile.ZipFile(checked) as archive:
        assert json.loads(archive.read("archive/models/model.json"))["guards_code"] == []
        assert archive.read("archive/data/sample_inputs/model.pt") == b""
    checked.seek(0)
    module: Any = torch.export.load(checked).module(check_guards=False)
    assert torch.equal(module(ROWS), expected) and module(ROWS[:1]).shape == (1, 3)


def first_size(model: Any) -> Any:
    sizes = (size for value in model["graph_module"]["graph"]["tensor_values"].values() for size in value["sizes"])
    return next(size["as_expr"] for size in sizes if "as_expr" in size)


def rename_input(model: Any) -> None:
    """The name of an input stands in the source of the module's `forward`."""
    text = json.dumps(model).replace('"x"', "\"x=__import__('os').system('true')\"")
    model.clear()
    model.update(json.loads(text))


EVIL: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "pickled weight": (WEIGHTS, lambda c: c["config"]["layer.weight"].update(use_pickle=True), "pickle-free"),
    "weight of another name": (WEIGHTS, lambda c: c["config"]["layer.weight"].update(path_name="../x"), "pickle-free"),
    "pickled object": (
        CONSTANTS,
        lambda c: c["config"].update(o={"path_name": "opaque_obj_0", "use_pickle": True}),
        "pickle-free",
    ),
    "size as code": (
        MODEL,
        lambda m: first_size(m).update(expr_str="__import__('os').system('true')"),
        "no arithmetic of sizes",
    ),
    "size by attributes": (
        MODEL,
        lambda m: first_size(m).update(expr_str="Symbol('s0').__class__.__mro__"),
        "no arithmetic of sizes",
    ),
    "size from text": (MODEL, lambda m: first_size(m).update(expr_str="Max('print(1)')"), "no arithmetic of sizes"),
    "any function of torch": (MODEL, lambda m: nodes(m)[0].update(target="torch.os.system"), "uses torch.os.system"),
    "call": (MODEL, lambda m: nodes(m)[0].update(target="_operator.call"), "uses _operator.call"),
    "a file": (MODEL, lambda m: nodes(m)[0].update(target="torch.ops.aten.save.default"), "uses torch.ops.aten.save"),
    "a mapped file": (MODEL, lambda m: nodes(m)[0].update(target="torch.ops.aten.from_file.default"), "from_file"),
    "name as code": (MODEL, rename_input, "which is no name"),
    "a class in the inputs": (
        MODEL,
        lambda m: m["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec='[1, {"type": "collections.defaultdict", "context": "null", "children_spec": []}]'
        ),
        "defaultdict",
    ),
    "an object": (
        MODEL,
        lambda m: m["graph_module"]["graph"].update(custom_obj_values={"o": {}}),
        "objects of classes of its",
    ),
}


@pytest.mark.parametrize("what", EVIL)
def test_content_that_would_run_is_refused_by_name(what: str, program: dict[str, bytes], tmp_path: Path) -> None:
    name, change, message = EVIL[what]
    with pytest.raises(PartError, match=message):
        sanitize_program(write(tmp_path, edit(program, name, change)))


@pytest.mark.parametrize(
    "name",
    [
        "data/aotinductor/model/x.so",
        "data/constants/evil.pt",
        "data/weights/model.pt",
        "data/constants/model.pt",
        "models/other.json",
    ],
)
def test_unknown_records_are_refused(name: str, program: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"not a pickle-free payload"):
        sanitize_program(write(tmp_path, program | {name: b"cos\nsystem\n(S'true'\ntR."}))


def test_sample_inputs_are_never_unpickled(program: dict[str, bytes], tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    evil = io.BytesIO()
    torch.save({"x": ROWS}, evil)
    file = write(tmp_path, program | {"data/sample_inputs/model.pt": f"cpathlib\nPath\n(S'{proof}'\ntR.".encode()})
    torch.export.load(sanitize_program(file))
    assert not proof.exists()


def test_other_archives(program: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(PartError, match="compressed or encrypted"):
        sanitize_program(write(tmp_path, program, zipfile.ZIP_DEFLATED))
    with pytest.raises(PartError, match="may be pickled"):
        sanitize_program(write(tmp_path, {name: content for name, content in program.items() if name != WEIGHTS}))
    (tmp_path / "model.pt2").write_bytes(b"PK not at all")
    with pytest.raises(PartError, match="is no archive of an exported program"):
        sanitize_program(tmp_path / "model.pt2")


# --------------------------------------------------------------------------- ONNX


def graph_with_tensors_in(folder: Path, location: str) -> Path:
    tensor = numpy_helper.from_array(np.ones((6, 3), np.float32), "w")
    value = helper.make_tensor_value_info
    x, y = (value(name, TensorProto.FLOAT, ["n", width]) for name, width in (("x", 6), ("y", 3)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    (folder / "model").mkdir(exist_ok=True)
    (folder / "secret").write_bytes(b"\0" * 72)
    (folder / "model" / "own").write_bytes(b"\0" * 72)
    model = helper.make_model(graph)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    file = folder / "model" / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return file


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "", "own/../../secret"])
def test_tensors_outside_the_models_folder_are_not_read(location: str, tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"only files beside the graph are read"):
        require_own_tensors(graph_with_tensors_in(tmp_path, location))


def test_tensors_beside_the_graph_are_read_and_links_are_not(tmp_path: Path) -> None:
    file = graph_with_tensors_in(tmp_path, "own")
    require_own_tensors(file)
    assert onnx.load(file).graph.initializer[0].name == "w"
    (file.parent / "own").unlink()
    with pytest.raises(PartError, match="which is not there"):
        require_own_tensors(file)
    (file.parent / "own").symlink_to(tmp_path / "secret")
    with pytest.raises(PartError, match="only files beside the graph are read"):
        require_own_tensors(file)
