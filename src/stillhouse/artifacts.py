"""Model files of unknown origin, checked before a library opens them: nothing in them runs or reads other files.

``torch.export.load`` unpickles weights, constants and example inputs where the archive (``.pt2``) asks for it, loads
compiled libraries, evaluates the sizes of tensors as Python (``sympy.sympify``), takes any name below ``torch`` for an
operator, and writes names into source code. :func:`checked_program` reads the archive by itself, refuses what it does
not know, and writes a new one of what is needed: the graph as JSON, and tensors as plain bytes. An ONNX graph may keep
its tensors in other files, wherever it says: :func:`require_own_tensors` lets it name those beside it.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stillhouse.errors import PartError

__all__ = ["checked_program", "require_own_tensors"]

_MODEL = "models/model.json"
_CONFIGS = {
    "data/weights": "data/weights/model_weights_config.json",
    "data/constants": "data/constants/model_constants_config.json",
}
_TENSORS = {"data/weights": re.compile(r"weight_\d+"), "data/constants": re.compile(r"tensor_\d+")}
# Written by torch beside the model; never read here. What a user puts into `extra_files` lies in extra/.
_LEFT_OUT = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)"
    r"|\.format_version|\.storage_alignment|data/sample_inputs/model\.pt|extra/.*"
)
_KEPT_METADATA = ("nn_module_stack",)  # of a node: which layer it is part of

_ATEN = re.compile(r"torch\.ops\.aten\.([a-z]\w*|__\w+__|_[a-z]\w*)\.(\w+)")
_ON_SIZES = re.compile(
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|truediv|mod|pow|and_|or_|lshift|rshift|getitem)"
    r"|math\.(trunc|ceil|floor)|torch\.sym_(not|int|float|ite|max|min|sqrt|sum)"
)
# sympy's and torch's functions of numbers, as `sympy.srepr` writes them.
_FUNCTIONS = frozenset(
    (
        "Symbol",
        "Integer",
        "Float",
        "Rational",
        "Add",
        "Mul",
        "Pow",
        "Max",
        "Min",
        "Abs",
        "Mod",
        "floor",
        "ceiling",
        "Equality",
        "Unequality",
        "LessThan",
        "GreaterThan",
        "StrictLessThan",
        "StrictGreaterThan",
        "And",
        "Or",
        "Not",
        "Piecewise",
        "ExprCondPair",
        "Tuple",
        "FloorDiv",
        "ModularIndexing",
        "Where",
        "PythonMod",
        "CleanDiv",
        "CeilToInt",
        "FloorToInt",
        "CeilDiv",
        "LShift",
        "RShift",
        "PowByNatural",
        "FloatPow",
        "FloatTrueDiv",
        "IntTrueDiv",
        "IsNonOverlappingAndDenseIndicator",
        "TruncToFloat",
        "TruncToInt",
        "RoundToInt",
        "RoundDecimal",
        "ToFloat",
        "Identity",
    )
)
_CONSTANTS = frozenset({"true", "false", "oo", "int_oo", "zoo", "nan", "I", "E", "pi"})
_SYMBOL = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?")
_TREE_NODES = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
_LONGEST_EXPRESSION = 2000  # characters
# Names become source code when torch makes a module of the graph. Text that is given to an operator does not.
_NAME = re.compile(r"[A-Za-z0-9_.]*")
_NO_NAMES = frozenset({"expr_str", "as_string", "as_strings", "in_spec", "out_spec", "metadata"})


def checked_program(path: Path) -> io.BytesIO:
    """An archive with the same program, for ``torch.export.load``; reading it runs nothing of its author's.

    Left out are example inputs, extra files, guards and what the nodes' metadata say beyond their layer.

    :raises PartError: naming what the archive holds that is no graph or tensor: pickles, compiled code, operators
        other than ATen's, sizes that are no arithmetic.
    """
    records = _records(path)
    tensors: dict[str, bytes] = {}
    for folder, config in _CONFIGS.items():
        for name in _named_tensors(path, folder, records.get(config)):
            if name not in records:
                raise PartError(f"{path.name} names the tensor {name}, which it does not hold: log the model again")
            tensors[name] = records[name]
    for name in records:
        if name not in tensors and name not in (_MODEL, *_CONFIGS.values()) and not _LEFT_OUT.fullmatch(name):
            raise PartError(
                f"{path.name} holds {name}, which is not a pickle-free payload: a graph as JSON and tensors as plain "
                f"bytes are all that is read. {_AGAIN}"
            )
    if _MODEL not in records:
        raise PartError(f"{path.name} holds no {_MODEL}: {_AGAIN[0].lower()}{_AGAIN[1:]}")
    model = _json(path, _MODEL, records[_MODEL])
    _require_graph(path, model)
    return _archive(model, {config: records[config] for config in _CONFIGS.values()} | tensors)


_AGAIN = "Log the model again with mlflow.pytorch.log_model(…, serialization_format='pt2') and torch 2.9 or newer"


# --------------------------------------------------------------------------- the archive


def _records(path: Path) -> dict[str, bytes]:
    """Content by name below the archive's one folder. Nothing is compressed, so nothing can be larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = [each for each in archive.infolist() if not each.is_dir()]
            for each in files:
                if each.compress_type != zipfile.ZIP_STORED or each.flag_bits & 1:
                    raise PartError(
                        f"{path.name} holds {each.filename} compressed or encrypted, as torch writes nothing"
                    )
            if sum(each.file_size for each in files) > path.stat().st_size:
                raise PartError(f"{path.name} holds records that overlap, as torch writes none")
            if len({each.filename for each in files}) < len(files):
                raise PartError(f"{path.name} holds two records of one name")
            return {each.filename.partition("/")[2] or each.filename: archive.read(each) for each in files}
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise PartError(f"{path.name} is no archive of an exported program: {error}. {_AGAIN}") from error


def _named_tensors(path: Path, folder: str, config: bytes | None) -> Iterator[str]:
    """The records that a configuration reads as tensors of plain bytes."""
    name = _CONFIGS[folder]
    if config is None:
        raise PartError(f"{path.name} holds no {name}: its tensors may be pickled. {_AGAIN}")
    entries = _json(path, name, config).get("config")
    if not isinstance(entries, dict):
        raise PartError(f"{path.name}: {name} names no tensors")
    for tensor, entry in entries.items():
        _require_names(path, tensor)
        record = entry.get("path_name") if isinstance(entry, dict) else None
        if (
            not isinstance(record, str)
            or not _TENSORS[folder].fullmatch(record)
            or entry.get("use_pickle") is not False
        ):
            raise PartError(
                f"{path.name}: {tensor} is read from {record}, which is not a pickle-free payload. {_AGAIN}"
            )
        _require_names(path, entry)
        for expression in _expressions(entry):
            _require_arithmetic(path, expression)
        yield f"{folder}/{record}"


def _json(path: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise PartError(f"{path.name}: {name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise PartError(f"{path.name}: {name} is no JSON object")
    return found


def _archive(model: Mapping[str, Any], records: Mapping[str, bytes]) -> io.BytesIO:
    """What torch reads: its own writer's archive, with no example inputs."""
    from torch.export.pt2_archive._package import PT2ArchiveWriter

    content = io.BytesIO()
    with PT2ArchiveWriter(content) as archive:
        for name, record in records.items():
            archive.write_bytes(name, record)
        archive.write_bytes(_MODEL, json.dumps(model).encode())
        archive.write_bytes("data/sample_inputs/model.pt", b"")
    content.seek(0)
    return content


# --------------------------------------------------------------------------- the graph


def _require_graph(path: Path, model: dict[str, Any]) -> None:
    """Refuse what would run or import something; take out what is not needed and might."""
    try:
        outer = model["graph_module"]
        for graph in _graphs(outer["graph"]):
            _require_operators(path, graph)
        for entry in outer["module_call_graph"]:
            for name in ("in_spec", "out_spec"):
                if entry.get("signature"):
                    _require_tree(path, entry["signature"][name])
    except (KeyError, TypeError, AttributeError) as error:
        raise PartError(f"{path.name}: {_MODEL} is no exported program: {type(error).__name__}: {error}") from error
    for expression in _expressions(model):
        _require_arithmetic(path, expression)
    model["guards_code"] = []
    outer["metadata"] = {}
    outer["treespec_namedtuple_fields"] = {}
    _require_names(path, outer)
    _require_names(path, model.get("range_constraints"))


def _graphs(graph: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The graph, and those that its nodes are given."""
    pending = [graph]
    while pending:
        found = pending.pop()
        yield found
        for node in found["nodes"]:
            for given in node["inputs"]:
                inside = given["arg"].get("as_graph")
                if inside is not None:
                    pending.append(inside["graph"])


def _require_operators(path: Path, graph: dict[str, Any]) -> None:
    if graph.get("custom_obj_values"):
        raise PartError(f"{path.name} holds objects of classes of its own: log a model of tensors alone")
    for node in graph["nodes"]:
        target, metadata = str(node["target"]), node.get("metadata") or {}
        if not _known(target):
            layer = str(metadata.get("nn_module_stack", "")).rpartition(";")[2].split(",")
            place = f"layer {layer[1]}" if len(layer) > 1 and layer[1] else "the model itself"
            short = target.removeprefix("torch.ops.higher_order.")
            raise PartError(f"{path.name}: {place} uses {short}, which cannot be compressed: log it without")
        node["metadata"] = {name: metadata[name] for name in _KEPT_METADATA if name in metadata}


def _known(target: str) -> bool:
    """Whether it is arithmetic on sizes, or one of ATen's operators that reads and writes no file."""
    if _ON_SIZES.fullmatch(target):
        return True
    named = _ATEN.fullmatch(target)
    if named is None:
        return False
    import torch

    operator = getattr(getattr(torch.ops.aten, named[1], None), named[2], None)
    schema = getattr(operator, "_schema", None)
    return schema is not None and not any(each.name == "filename" for each in schema.arguments)


def _require_names(path: Path, value: Any) -> None:
    """Refuse names that would be more than a name in source code."""
    pending = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, str):
            if not _NAME.fullmatch(found):
                raise PartError(f"{path.name} has a part named {found[:80]!r}, which is no name")
        elif isinstance(found, dict):
            pending += [*found, *(inside for name, inside in found.items() if name not in _NO_NAMES)]
        elif isinstance(found, list):
            pending += found


def _require_tree(path: Path, text: str) -> None:
    """Inputs and outputs nest in tuples, lists and dictionaries alone: other kinds of node may import a module."""
    pending = [json.loads(text)[1]]
    while pending:
        node = pending.pop()
        if node.get("context") not in (None, "null"):
            _require_names(path, json.loads(node["context"]) if isinstance(node["context"], str) else node["context"])
        if node["type"] is not None and node["type"] not in _TREE_NODES:
            raise PartError(f"{path.name} takes or gives a {node['type']}: log a model of tensors alone")
        pending += node["children_spec"]


def _expressions(value: Any) -> Iterator[str]:
    """Every size that is an expression."""
    pending = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, dict):
            if "expr_str" in found:
                yield str(found["expr_str"])
            pending += found.values()
        elif isinstance(found, list):
            pending += found


def _require_arithmetic(path: Path, expression: str) -> None:
    """A size is evaluated by ``sympy.sympify``, as Python: only functions of numbers are let through."""
    refused = PartError(f"{path.name}: a size is {expression[:80]!r}, which is no arithmetic of sizes")
    if len(expression) > _LONGEST_EXPRESSION:
        raise refused
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise refused from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            fine = (
                isinstance(node.func, ast.Name)
                and node.func.id in _FUNCTIONS
                and all(each.arg for each in node.keywords)
            )
        elif isinstance(node, ast.Name):
            fine = node.id in _FUNCTIONS | _CONSTANTS or re.fullmatch(r"[suz][a-z]{0,2}\d+", node.id) is not None
        elif isinstance(node, ast.Constant):
            fine = isinstance(node.value, int | float) or (
                isinstance(node.value, str) and bool(_SYMBOL.fullmatch(node.value) or _NUMBER.fullmatch(node.value))
            )
        else:
            fine = isinstance(
                node,
                ast.Expression
                | ast.Load
                | ast.keyword
                | ast.BinOp
                | ast.UnaryOp
                | ast.operator
                | ast.unaryop
                | ast.Compare
                | ast.cmpop
                | ast.Tuple,
            )
        if not fine:
            raise refused


# --------------------------------------------------------------------------- ONNX


def require_own_tensors(path: Path) -> None:
    """Refuse an ONNX graph whose tensors lie in files other than those in its own folder.

    :raises PartError: naming the tensor and where it is said to lie, or that the file is no ONNX graph.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # of a file of unknown origin: the library's errors have no base of their own
        raise PartError(f"{path.name} is no ONNX graph: {type(error).__name__}: {error}") from error
    folder = path.parent.resolve()
    for tensor in _tensors_of(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        named = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        file = folder / named
        if not named or "\\" in named or file.is_symlink() or not file.resolve().is_relative_to(folder):
            raise PartError(
                f"{path.name}: tensor {tensor.name!r} is said to lie in {named!r}, and only files beside the graph are "
                f"read: log the model again with its tensors in its own folder"
            )
        if not file.is_file():
            raise PartError(f"{path.name}: tensor {tensor.name!r} lies in {named!r}, which is not there: log it again")


def _tensors_of(message: Any) -> Iterator[Any]:
    """Every tensor in an ONNX message, wherever it nests."""
    import onnx

    pending = [message]
    while pending:
        found = pending.pop()
        if isinstance(found, onnx.TensorProto):
            yield found
            continue
        for field, value in found.ListFields():
            if field.type == field.TYPE_MESSAGE:
                pending += value if field.is_repeated else [value]
