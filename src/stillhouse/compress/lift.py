"""An exported torch program (``.pt2``) as a module of layers again, so that layers can be made smaller.

A program has its weights and its arithmetic (``aten`` operators), but no layers. Where an operator reads weights that
nobody else reads, it becomes the layer that it once was, under the weights' own name; everything else stays as it is.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from stillhouse.artifacts import sanitize_program
from stillhouse.compress.rows import Input
from stillhouse.compress.subject import Feed
from stillhouse.errors import ExportError, PartError

__all__ = ["lift", "name_layer", "program_answers", "program_inputs", "read_program", "require_same"]

_SAME = 1e-5  # largest difference between the program's and the module's answers, of answers of size 1
_FEWEST_CLASSES = 2

_aten: Any = torch.ops.aten
# What the ONNX export knows under another name.
_OTHERWISE = {_aten._softmax.default: _aten.softmax.int, _aten._log_softmax.default: _aten.log_softmax.int}


def read_program(path: Path) -> ExportedProgram:
    """A program from its file, checked first: nothing in it is unpickled, imported or evaluated.

    :raises ExportError: if it holds more than a graph and tensors, naming what, or cannot be read here.
    """
    try:
        return torch.export.load(sanitize_program(path))
    except PartError as error:
        raise ExportError(f"the exported program cannot be read here: {error}") from error
    except Exception as error:  # of a stranger's file: the library's errors have no base of their own
        raise ExportError(f"the exported program cannot be read here: {type(error).__name__}: {error}") from error


def program_inputs(program: ExportedProgram) -> tuple[Input, ...]:
    """What the program reads.

    :raises ExportError: naming the input, unless the number of rows, and nothing else, is left open.
    """
    return tuple(_input(node, program) for node in _placeholders(program.module(check_guards=False).graph))


def program_answers(program: ExportedProgram, feed: Feed) -> dict[str, Any]:
    """What the program gives for all rows, by the name of each output: its key in a dictionary, or its operator's.

    :raises ExportError: if it does not take these rows.
    """
    original: Any = program.module(check_guards=False)
    rows = len(next(iter(feed.values())))
    answers = _called(original, feed, rows)
    flat = _tensors(answers)
    keys = list(map(str, answers)) if isinstance(answers, Mapping) and len(answers) == len(flat) else []
    keys = keys or list(map(str, program.graph_signature.user_outputs))
    if len(set(keys)) != len(flat):
        keys = [f"output_{place}" for place in range(len(flat))]
    return {key: each.numpy() for key, each in zip(keys, flat, strict=True)}


def _called(module: nn.Module, feed: Feed, count: int) -> Any:
    """What a module says about the first rows."""
    inputs = tuple(torch.from_numpy(array[:count]) for array in feed.values())
    try:
        with torch.no_grad():
            return module(*inputs)
    except Exception as error:  # of a stranger's program
        raise ExportError(
            f"the model fails on {count} rows of {', '.join(feed)}: {type(error).__name__}: {error}"
        ) from error


def lift(program: ExportedProgram, output: int | None = None) -> fx.GraphModule:
    """The program as a module in evaluation mode: layers ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``,
    ``nn.Embedding``, ``nn.LayerNorm`` and ``nn.BatchNorm…`` wherever it reads constant weights in their way.

    It takes the program's inputs in their order and gives the output at the place ``output`` among its tensors, or the
    first that is ``[n, K]`` numbers. A layer
    bears the name of its weight: ``layers.0`` for ``layers.0.weight``. Calls that share all weights share the layer;
    weights that are read in several ways stay as they are.

    :raises ExportError: if there is no such output, or the number of rows is frozen.
    """
    module: Any = program.module(check_guards=False)
    graph: fx.Graph = module.graph
    for node in _placeholders(graph):
        _input(node, program)
    graph.set_codegen(fx.graph.CodeGen())
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise ExportError(f"{_place(node)} uses {node.target.name()}, which cannot be compressed: log it without")
    _one_output(graph, output)
    _let_sizes_follow(graph)
    _as_layers(module)
    graph.lint()
    return fx.GraphModule(module, graph, "Model").eval()


def name_layer(module: fx.GraphModule, error: ExportError) -> ExportError:
    """The same error, with the layers that an operator which ONNX does not know is used by."""
    unknown = re.search(r"operator '\w+::(\w+)'", str(error))
    if unknown is None:
        return error
    places = dict.fromkeys(
        _place(node)
        for node in module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.name.endswith(f"::{unknown[1]}")
    )
    return ExportError(f"{', '.join(places)} uses {unknown[1]}, which ONNX has no operator for: {error}")


def _place(node: fx.Node) -> str:
    """The layer that a node was part of."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [path for path, _ in stack.values() if path]
    return f"layer {names[-1]}" if names else "the model itself"


def require_same(program: ExportedProgram, module: nn.Module, feed: Feed, output: int | None = None) -> None:
    """Refuse a lifted module that answers otherwise than the program, or a program that does not take these rows.

    :raises ExportError: with the difference.
    """
    original: Any = program.module(check_guards=False)
    rows = len(next(iter(feed.values())))
    for count in dict.fromkeys((rows, min(rows, 3), 1)):
        given, found = _tensors(_called(original, feed, count)), _called(module, feed, count)
        wanted = next(each for each in given if _is_answer(each)) if output is None else given[output]
        difference = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))
        if not difference <= _SAME:
            raise ExportError(
                f"taken apart into layers the model answers {count} rows otherwise, by {difference:.3g} (allowed: "
                f"{_SAME:g}): it cannot be compressed"
            )


# --------------------------------------------------------------------------- inputs and outputs


def _placeholders(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _input(node: fx.Node, program: ExportedProgram) -> Input:
    value, name = node.meta.get("val"), str(node.target)
    if not isinstance(value, Tensor):
        raise ExportError(f"input {name} is no tensor: export the model with tensors alone as its inputs")
    if not value.ndim or not _open(value.shape[0]):
        frozen = value.shape[0] if value.ndim else "no"
        raise ExportError(
            f"input {name} takes exactly {frozen} rows at once: the number of rows was frozen when the model was "
            f"exported. Log it again with an input example of two rows or more and −1 as the signature's first size"
        )
    for place, width in enumerate(value.shape[1:], start=1):
        if _open(width):
            raise ExportError(
                f"dimension {place} of input {name} is left open, and a compressed model has fixed sizes: log the "
                f"model with a fixed one, and pad its rows to it"
            )
    size: Any = value.shape[0]
    bounds = program.range_constraints.get(size.node.expr)
    if bounds is not None and (bounds.lower > 2 or bounds.upper < sys.maxsize):
        raise ExportError(
            f"input {name} takes {bounds.lower} to {bounds.upper} rows at once: log the model with any number of rows"
        )
    dtype = torch.empty(0, dtype=value.dtype)
    try:
        kind = dtype.numpy().dtype
    except TypeError as error:
        raise ExportError(f"input {name} is {value.dtype}, which no array holds: log the model in float32") from error
    return Input(name, kind, tuple(int(size) for size in value.shape[1:]))


def _open(size: object) -> bool:
    """Whether the program leaves a dimension open."""
    return isinstance(size, torch.SymInt)


def _one_output(graph: fx.Graph, place: int | None) -> None:
    """Leave one output: that at ``place`` among the tensors, or the first that is ``[n, K]`` numbers."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    given = [each for each in _flat(output.args) if isinstance(each, fx.Node)]
    if place is not None:
        given = [[each for each in given if isinstance(each.meta.get("val"), Tensor)][place]]
    able = [each for each in given if _is_answer(each.meta.get("val"))]
    if not able:
        shapes = ", ".join(str(_shape(each.meta.get("val"))) for each in given)
        raise ExportError(f"the model gives {shapes or 'nothing'}, and a classifier gives [n, K] numbers with K ≥ 2")
    output.args = (able[0],)


def _is_answer(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.ndim == 2
        and value.is_floating_point()
        and not _open(value.shape[1])
        and value.shape[1] >= _FEWEST_CLASSES
    )


def _shape(value: object) -> object:
    return [str(size) for size in value.shape] if isinstance(value, Tensor) else type(value).__name__


def _tensors(answers: object) -> list[Tensor]:
    return [each for each in _flat(answers) if isinstance(each, Tensor)]


def _flat(value: object) -> list[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return list(chain.from_iterable(map(_flat, value)))
    return [value]


# --------------------------------------------------------------------------- sizes that follow the number of rows


def _let_sizes_follow(graph: fx.Graph) -> None:
    """Put methods in the place of operators that a size goes into: only those let the ONNX export see it move."""
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target in _OTHERWISE:
            node.target, node.args = _OTHERWISE[node.target], node.args[:2]
        name = node.target._schema.name.rpartition("::")[2]
        if name.startswith(("_assert", "sym_constrain")):
            if not node.users:
                graph.erase_node(node)
        elif name == "sym_size":
            node.op, node.target = "call_method", "size"
        elif any(
            isinstance(each, fx.Node) and isinstance(each.meta.get("val"), torch.SymInt)
            for each in chain(_flat(node.args), _flat(node.kwargs))
        ):
            first = node.args[0] if node.args else None
            if isinstance(first, fx.Node) and isinstance(first.meta.get("val"), Tensor) and hasattr(Tensor, name):
                node.op, node.target = "call_method", name
            elif hasattr(torch, name):
                node.target = getattr(torch, name)


# --------------------------------------------------------------------------- operators that become layers


@dataclass(frozen=True)
class _Call:
    """An operator that reads constant weights as a layer does.

    :param reads: names of the constants, the one that the layer is named after first.
    :param settings: what tells layers on the same constants apart.
    :param given: name of the operator's argument that the layer is called with.
    :param make: the layer, from the constants.
    """

    reads: tuple[str, ...]
    settings: tuple[object, ...]
    given: str
    make: Callable[[Mapping[str, Tensor]], nn.Module]


def _as_layers(module: nn.Module) -> None:
    graph: fx.Graph = module.graph  # type: ignore[assignment]  # of a GraphModule
    groups: dict[tuple[object, ...], list[tuple[fx.Node, _Call]]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and (call := _recognised(node)) is not None:
            groups.setdefault((call.reads, call.settings), []).append((node, call))
    readers = _readers(graph)
    for group in groups.values():
        nodes = {node for node, _ in group}
        reads = group[0][1].reads
        if all(readers[path] <= nodes for path in reads):
            name = _put(module, reads, group[0][1])
            for node, call in group:
                node.args, node.kwargs = (_arguments(node)[call.given],), {}
                node.op, node.target = "call_module", name
                for user in [each for each in node.users if each.target is operator.getitem]:
                    user.replace_all_uses_with(node)
    for node in reversed(list(graph.nodes)):
        if node.op in ("get_attr", "call_function") and not node.users:
            graph.erase_node(node)


def _readers(graph: fx.Graph) -> dict[str, set[fx.Node]]:
    """Who reads each constant, be it turned."""
    found: dict[str, set[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            users = chain.from_iterable(each.users if _turned(each) else [each] for each in node.users)
            found.setdefault(str(node.target), set()).update(users)
    return found


def _put(module: nn.Module, reads: tuple[str, ...], call: _Call) -> str:
    """Let a layer hold these constants; its name."""
    constants = {path: _constant(module, path) for path in reads}
    layer = call.make(constants)
    parent, _, own = reads[0].rpartition(".")
    name = reads[0]
    if own in ("weight", "running_mean") and parent and _holds_only(module.get_submodule(parent), parent, set(reads)):
        name = parent
    for path in reads:
        holder, _, last = path.rpartition(".")
        delattr(module.get_submodule(holder), last)
    above, _, own = name.rpartition(".")
    setattr(module.get_submodule(above), own, layer.eval())
    return name


def _constant(module: nn.Module, path: str) -> Tensor:
    value: Tensor = operator.attrgetter(path)(module)
    return value.detach()


def _holds_only(part: nn.Module, name: str, paths: set[str]) -> bool:
    held = {f"{name}.{own}" for own, _ in chain(part.named_parameters(), part.named_buffers())}
    return held <= paths | {f"{name}.num_batches_tracked"} and not list(part.children())


def _recognised(node: fx.Node) -> _Call | None:
    known = _LAYERS.get(node.target)
    if known is None or any(each.target is operator.getitem and each.args[1] != 0 for each in node.users):
        return None
    return known(_arguments(node))


def _arguments(node: fx.Node) -> dict[str, Any]:
    """An operator's arguments by name."""
    schema = node.target._schema  # type: ignore[union-attr]  # an operator has one
    given = {each.name: each.default_value for each in schema.arguments if each.has_default_value()}
    given |= dict(zip((each.name for each in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return given


def _path(value: object) -> str | None:
    """Name of a constant."""
    return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else None


def _turned(node: fx.Node) -> bool:
    """Whether the node is a matrix with its axes exchanged."""
    if node.target is _aten.t.default:
        return True
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.ndim != 2:
        return False
    if node.target is _aten.permute.default:
        return _flat(node.args[1]) in ([1, 0], [-1, -2])
    return node.target is _aten.transpose.int and {int(axis) % 2 for axis in _flat(node.args[1:])} == {0, 1}


def _call(
    given: str,
    weight: object,
    bias: object,
    settings: Sequence[object],
    make: Callable[[Tensor, Tensor | None], nn.Module],
) -> _Call | None:
    """A call of a layer with a weight and perhaps a bias; None where these are not constants."""
    name, second = _path(weight), _path(bias)
    if name is None or (bias is not None and second is None):
        return None
    reads = (name,) if second is None else (name, second)
    return _Call(reads, tuple(settings), given, lambda held: make(held[name], held[second] if second else None))


def _linear(given: Mapping[str, Any]) -> _Call | None:
    return _call("input", given["weight"], given["bias"], ("linear",), _linear_layer)


def _product(given: Mapping[str, Any], left: str, right: str, bias: str | None = None) -> _Call | None:
    """``x Wᵀ``, or with a bias ``b + x Wᵀ``."""
    matrix = given[right]
    if (
        not isinstance(matrix, fx.Node)
        or not _turned(matrix)
        or (given.get("alpha", 1), given.get("beta", 1)) != (1, 1)
    ):
        return None
    added = given[bias] if bias else None
    shape = added.meta["val"].shape if isinstance(added, fx.Node) else (0,)
    if len(shape) != 1:
        return None
    return _call(left, matrix.args[0], added, ("linear",), _linear_layer)


def _linear_layer(weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    return _with(layer, weight=weight, bias=bias)


def _convolution(given: Mapping[str, Any], dimensions: int | None = None) -> _Call | None:
    if given.get("transposed", False):
        return None
    kinds: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}
    weight = given["weight"]
    if dimensions is None:
        dimensions = weight.meta["val"].ndim - 2
    if dimensions not in kinds:
        return None
    settings = {
        name: each if isinstance(each := given[name], str) else _sizes(each, dimensions)
        for name in ("stride", "padding", "dilation")
    }
    groups = int(given["groups"])

    def make(weight: Tensor, bias: Tensor | None) -> nn.Module:
        layer: Any = kinds[dimensions](
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            groups=groups,
            bias=bias is not None,
            dtype=weight.dtype,
            **settings,
        )
        return _with(layer, weight=weight, bias=bias)

    return _call("input", weight, given["bias"], ("convolution", groups, *settings.values()), make)


def _sizes(value: Any, dimensions: int) -> tuple[int, ...]:
    sizes = [value] if isinstance(value, int) else list(value)
    return tuple(sizes * dimensions if len(sizes) == 1 else sizes)


def _embedding(given: Mapping[str, Any]) -> _Call | None:
    padding = int(given["padding_idx"])

    def make(weight: Tensor, _: Tensor | None) -> nn.Module:
        place = None if padding < 0 else padding
        layer: nn.Module = nn.Embedding.from_pretrained(weight.clone(), freeze=False, padding_idx=place)
        return layer

    return _call("indices", given["weight"], None, ("embedding", padding), make)


def _layer_norm(given: Mapping[str, Any]) -> _Call | None:
    shape, eps = tuple(given["normalized_shape"]), float(given["eps"])

    def make(weight: Tensor, bias: Tensor | None) -> nn.Module:
        layer = nn.LayerNorm(shape, eps, bias=bias is not None, dtype=weight.dtype)
        return _with(layer, weight=weight, bias=bias)

    return _call("input", given["weight"], given["bias"], ("layer_norm", shape, eps), make)


def _batch_norm(given: Mapping[str, Any]) -> _Call | None:
    names = ("running_mean", "running_var", "weight", "bias")
    paths = {name: _path(given[name]) for name in names}
    eps, dimensions = float(given["eps"]), given["input"].meta["val"].ndim
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}.get(dimensions)
    affine = paths["weight"] is not None and paths["bias"] is not None
    plain = given["weight"] is None and given["bias"] is None
    if (
        given.get("training")
        or kind is None
        or not (affine or plain)
        or None in (paths["running_mean"], paths["running_var"])
    ):
        return None

    def make(held: Mapping[str, Tensor]) -> nn.Module:
        constants = {name: held[path] for name, path in paths.items() if path is not None}
        mean = constants["running_mean"]
        return _with(kind(len(mean), eps, affine=affine, dtype=mean.dtype), **constants)

    reads = [paths[name] for name in (("weight", "bias") if affine else ()) + names[:2]]
    return _Call(tuple(map(str, reads)), ("batch_norm", eps, kind), "input", make)


def _with(layer: nn.Module, **constants: Tensor | None) -> nn.Module:
    """The layer with these weights."""
    with torch.no_grad():
        for name, value in constants.items():
            if value is not None:
                getattr(layer, name).copy_(value)
    return layer


_LAYERS: dict[object, Callable[[Mapping[str, Any]], _Call | None]] = {
    _aten.linear.default: _linear,
    _aten.addmm.default: lambda given: _product(given, "mat1", "mat2", "self"),
    _aten.mm.default: lambda given: _product(given, "self", "mat2"),
    _aten.matmul.default: lambda given: _product(given, "self", "other"),
    _aten.conv1d.default: lambda given: _convolution(given, 1),
    _aten.conv1d.padding: lambda given: _convolution(given, 1),
    _aten.conv2d.default: lambda given: _convolution(given, 2),
    _aten.conv2d.padding: lambda given: _convolution(given, 2),
    _aten.convolution.default: _convolution,
    _aten.embedding.default: _embedding,
    _aten.layer_norm.default: _layer_norm,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.batch_norm.default: _batch_norm,
    _aten._native_batch_norm_legit_no_training.default: _batch_norm,
}
