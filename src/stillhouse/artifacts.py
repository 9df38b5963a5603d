"""Check model files of unknown origin before a library opens them, so that they run no code and read no other files.

``torch.export.load`` unpickles weights, constants and example inputs if the archive (``.pt2``) asks for it, loads
compiled libraries, evaluates tensor sizes as Python (``sympy.sympify``), accepts any name below ``torch`` as an
operator, and writes names into source code. :func:`sanitize_program` parses the archive itself, refuses unknown
content, and writes a new archive with the graph as JSON and the tensors as plain bytes. An ONNX graph may refer to
tensors in any file: :func:`require_own_tensors` allows only files in the graph's folder.
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

__all__ = ["require_own_tensors", "sanitize_program"]

_MODEL = "models/model.json"
_CONFIGS = {
    "data/weights": "data/weights/model_weights_config.json",
    "data/constants": "data/constants/model_constants_config.json",
}
_TENSOR_NAMES = {"data/weights": re.compile(r"weight_\d+"), "data/constants": re.compile(r"tensor_\d+")}
# Files that torch writes besides the model, and `extra_files` of the user in extra/. They are ignored.
_IGNORED = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id)"
    r"|\.format_version|\.storage_alignment|data/sample_inputs/model\.pt|extra/.*"
)
_KEPT_METADATA = ("nn_module_stack",)  # the layer of a node

_ATEN_OPERATOR = re.compile(r"torch\.ops\.aten\.([a-z]\w*|__\w+__|_[a-z]\w*)\.(\w+)")
_SIZE_OPERATOR = re.compile(
    r"_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|truediv|mod|pow|and_|or_|lshift|rshift|getitem)"
    r"|math\.(trunc|ceil|floor)|torch\.sym_(not|int|float|ite|max|min|sqrt|sum)"
)
# Arithmetic functions of sympy and torch, as `sympy.srepr` writes them.
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
_MAX_EXPRESSION_CHARS = 2000
# Names become source code when torch builds a module from the graph. Text arguments of operators do not.
_NAME = re.compile(r"[A-Za-z0-9_.]*")
_TEXT_KEYS = frozenset({"expr_str", "as_string", "as_strings", "in_spec", "out_spec", "metadata"})


def sanitize_program(path: Path) -> io.BytesIO:
    """A new archive with the same program, which ``torch.export.load`` reads without running code of its author.

    Example inputs, extra files, guards, and all metadata of the nodes except their layer are dropped.

    :raises PartError: naming content that is no graph or tensor: pickles, compiled code, operators other than ATen's,
        sizes that are no arithmetic.
    """
    records = _records(path)
    tensors: dict[str, bytes] = {}
    for folder, config in _CONFIGS.items():
        for name in _named_tensors(path, folder, records.get(config)):
            if name not in records:
                raise PartError(f"{path.name} names the tensor {name}, which it does not hold: log the model again")
            tensors[name] = records[name]
    for name in records:
        if name not in tensors and name not in (_MODEL, *_CONFIGS.values()) and not _IGNORED.fullmatch(name):
            raise PartError(
                f"{path.name} holds {name}, which is not a pickle-free payload: a graph as JSON and tensors as plain "
                f"bytes are all that is read. {_LOG_AGAIN_ADVICE}"
            )
    if _MODEL not in records:
        raise PartError(f"{path.name} holds no {_MODEL}: {_LOG_AGAIN_ADVICE[0].lower()}{_LOG_AGAIN_ADVICE[1:]}")
    model = _parse_json(path, _MODEL, records[_MODEL])
    _require_graph(path, model)
    return _write_archive(model, {config: records[config] for config in _CONFIGS.values()} | tensors)


_LOG_AGAIN_ADVICE = (
    "Log the model again with mlflow.pytorch.log_model(…, serialization_format='pt2') and torch 2.9 or newer"
)


# --------------------------------------------------------------------------- the archive


def _records(path: Path) -> dict[str, bytes]:
    """Content by name below the archive's only folder. Records are uncompressed, so none exceeds the file's size."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = [record for record in archive.infolist() if not record.is_dir()]
            for record in records:
                if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
                    raise PartError(
                        f"{path.name} holds {record.filename} compressed or encrypted, which torch never writes"
                    )
            if sum(record.file_size for record in records) > path.stat().st_size:
                raise PartError(f"{path.name} holds records that overlap, which torch never writes")
            if len({record.filename for record in records}) < len(records):
                raise PartError(f"{path.name} holds two records with the same name")
            return {record.filename.partition("/")[2] or record.filename: archive.read(record) for record in records}
    except (OSError, zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise PartError(f"{path.name} is no archive of an exported program: {error}. {_LOG_AGAIN_ADVICE}") from error


def _named_tensors(path: Path, folder: str, config: bytes | None) -> Iterator[str]:
    """The records that a configuration refers to as tensors of plain bytes."""
    name = _CONFIGS[folder]
    if config is None:
        raise PartError(f"{path.name} holds no {name}: its tensors may be pickled. {_LOG_AGAIN_ADVICE}")
    entries = _parse_json(path, name, config).get("config")
    if not isinstance(entries, dict):
        raise PartError(f"{path.name}: {name} names no tensors")
    for tensor, entry in entries.items():
        _require_names(path, tensor)
        record = entry.get("path_name") if isinstance(entry, dict) else None
        if (
            not isinstance(record, str)
            or not _TENSOR_NAMES[folder].fullmatch(record)
            or entry.get("use_pickle") is not False
        ):
            raise PartError(
                f"{path.name}: {tensor} is read from {record}, which is not a pickle-free payload. {_LOG_AGAIN_ADVICE}"
            )
        _require_names(path, entry)
        for expression in _expressions(entry):
            _require_arithmetic(path, expression)
        yield f"{folder}/{record}"


def _parse_json(path: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise PartError(f"{path.name}: {name} is no JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise PartError(f"{path.name}: {name} is no JSON object")
    return parsed


def _write_archive(model: Mapping[str, Any], records: Mapping[str, bytes]) -> io.BytesIO:
    """An archive by torch's own writer, without example inputs."""
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
    """Refuse content that would run or import code; remove optional content that might."""
    try:
        module = model["graph_module"]
        for graph in _nested_graphs(module["graph"]):
            _require_operators(path, graph)
        for entry in module["module_call_graph"]:
            for name in ("in_spec", "out_spec"):
                if entry.get("signature"):
                    _require_tree(path, entry["signature"][name])
    except (KeyError, TypeError, AttributeError) as error:
        raise PartError(f"{path.name}: {_MODEL} is no exported program: {type(error).__name__}: {error}") from error
    for expression in _expressions(model):
        _require_arithmetic(path, expression)
    model["guards_code"] = []
    module["metadata"] = {}
    module["treespec_namedtuple_fields"] = {}
    _require_names(path, module)
    _require_names(path, model.get("range_constraints"))


def _nested_graphs(graph: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The graph, and all graphs that are arguments of its nodes."""
    pending = [graph]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph["nodes"]:
            for argument in node["inputs"]:
                subgraph = argument["arg"].get("as_graph")
                if subgraph is not None:
                    pending.append(subgraph["graph"])


def _require_operators(path: Path, graph: dict[str, Any]) -> None:
    if graph.get("custom_obj_values"):
        raise PartError(f"{path.name} holds objects of classes of its own: log a model of tensors alone")
    for node in graph["nodes"]:
        target, metadata = str(node["target"]), node.get("metadata") or {}
        if not _is_allowed(target):
            stack = str(metadata.get("nn_module_stack", "")).rpartition(";")[2].split(",")
            layer = f"layer {stack[1]}" if len(stack) > 1 and stack[1] else "the model itself"
            operator = target.removeprefix("torch.ops.higher_order.")
            raise PartError(f"{path.name}: {layer} uses {operator}, which cannot be compressed: log it without")
        node["metadata"] = {name: metadata[name] for name in _KEPT_METADATA if name in metadata}


def _is_allowed(target: str) -> bool:
    """Whether the operator is arithmetic on sizes, or an ATen operator that reads and writes no file."""
    if _SIZE_OPERATOR.fullmatch(target):
        return True
    match = _ATEN_OPERATOR.fullmatch(target)
    if match is None:
        return False
    import torch

    operator = getattr(getattr(torch.ops.aten, match[1], None), match[2], None)
    schema = getattr(operator, "_schema", None)
    return schema is not None and not any(argument.name == "filename" for argument in schema.arguments)


def _require_names(path: Path, value: Any) -> None:
    """Refuse names that would be more than an identifier in source code."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            if not _NAME.fullmatch(value):
                raise PartError(f"{path.name} has a part named {value[:80]!r}, which is no name")
        elif isinstance(value, dict):
            pending += [*value, *(item for name, item in value.items() if name not in _TEXT_KEYS)]
        elif isinstance(value, list):
            pending += value


def _require_tree(path: Path, text: str) -> None:
    """Inputs and outputs may nest in tuples, lists and dictionaries only: other node types may import a module."""
    pending = [json.loads(text)[1]]
    while pending:
        node = pending.pop()
        if node.get("context") not in (None, "null"):
            _require_names(path, json.loads(node["context"]) if isinstance(node["context"], str) else node["context"])
        if node["type"] is not None and node["type"] not in _TREE_NODES:
            raise PartError(f"{path.name} takes or gives a {node['type']}: log a model of tensors alone")
        pending += node["children_spec"]


def _expressions(value: Any) -> Iterator[str]:
    """All sizes that are expressions."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if "expr_str" in value:
                yield str(value["expr_str"])
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _require_arithmetic(path: Path, expression: str) -> None:
    """``sympy.sympify`` evaluates a size as Python, so only arithmetic functions are allowed."""
    refusal = PartError(f"{path.name}: a size is {expression[:80]!r}, which is no arithmetic of sizes")
    if len(expression) > _MAX_EXPRESSION_CHARS:
        raise refusal
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise refusal from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            allowed = (
                isinstance(node.func, ast.Name)
                and node.func.id in _FUNCTIONS
                and all(keyword.arg for keyword in node.keywords)
            )
        elif isinstance(node, ast.Name):
            allowed = node.id in _FUNCTIONS | _CONSTANTS or re.fullmatch(r"[suz][a-z]{0,2}\d+", node.id) is not None
        elif isinstance(node, ast.Constant):
            allowed = isinstance(node.value, int | float) or (
                isinstance(node.value, str) and bool(_SYMBOL.fullmatch(node.value) or _NUMBER.fullmatch(node.value))
            )
        else:
            allowed = isinstance(
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
        if not allowed:
            raise refusal


# --------------------------------------------------------------------------- ONNX


def require_own_tensors(path: Path) -> None:
    """Refuse an ONNX graph with tensors in files outside its own folder.

    >>> from tempfile import TemporaryDirectory
    >>> from onnx import helper
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "model.onnx")
    ...     size = file.write_bytes(helper.make_model(helper.make_graph([], "empty", [], [])).SerializeToString())
    ...     require_own_tensors(file)

    :raises PartError: naming the tensor and its location, or if the file is no ONNX graph.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # the library's errors share no base class
        raise PartError(f"{path.name} is no ONNX graph: {type(error).__name__}: {error}") from error
    folder = path.parent.resolve()
    for tensor in _tensors_of(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        file = folder / location
        if not location or "\\" in location or file.is_symlink() or not file.resolve().is_relative_to(folder):
            raise PartError(
                f"{path.name}: tensor {tensor.name!r} refers to {location!r}, but only files beside the graph "
                f"are read: log the model again with its tensors in its own folder"
            )
        if not file.is_file():
            raise PartError(
                f"{path.name}: tensor {tensor.name!r} lies in {location!r}, which is not there: log it again"
            )


def _tensors_of(message: Any) -> Iterator[Any]:
    """All tensors in an ONNX message, at any depth."""
    import onnx

    pending = [message]
    while pending:
        message = pending.pop()
        if isinstance(message, onnx.TensorProto):
            yield message
            continue
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                pending += value if field.is_repeated else [value]
