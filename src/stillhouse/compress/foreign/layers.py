"""The layers of an exported torch program, reconstructed as a module, so that structural steps can be applied.

A program has weights and arithmetic (``aten`` operators), but no layers. An operator whose weights no other operator
reads is replaced by the layer that it came from, named after the weights; all other operators stay as they are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from stillhouse.compress.foreign.torch_program import (
    flatten,
    input_of_node,
    is_class_scores,
    layer_of_node,
    placeholders,
    shape_text,
)
from stillhouse.errors import ExportError

__all__ = ["layers_from_export"]

_aten: Any = torch.ops.aten
# Operators that the ONNX export supports under another name.
_EXPORTABLE = {_aten._softmax.default: _aten.softmax.int, _aten._log_softmax.default: _aten.log_softmax.int}


def layers_from_export(program: ExportedProgram, output_index: int | None = None) -> fx.GraphModule:
    """The program as a module in evaluation mode, with layers ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``,
    ``nn.Embedding``, ``nn.LayerNorm`` and ``nn.BatchNorm…`` wherever it reads constant weights as these do.

    The module takes the program's inputs in their order. It returns the tensor at ``output_index`` among the program's
    outputs, or the first that is ``[n, K]`` numbers. A layer has the name of its weight: ``layers.0`` for
    ``layers.0.weight``. Calls that share all weights share the layer; weights that are read in several ways stay
    tensors.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        >>> rows = torch.export.Dim("rows")
        >>> program = torch.export.export(model, (torch.zeros(2, 4),), dynamic_shapes=({0: rows},))
        >>> [name for name, part in layers_from_export(program).named_modules() if isinstance(part, nn.Linear)]
        ['0', '2']

    :raises ExportError: if there is no such output, or the number of rows is fixed.
    """
    module: Any = program.module(check_guards=False)
    graph: fx.Graph = module.graph
    for node in placeholders(graph):
        input_of_node(node, program)
    graph.set_codegen(fx.graph.CodeGen())
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise ExportError(
                f"{layer_of_node(node)} uses {node.target.name()}, which cannot be compressed: log it without"
            )
    _select_output(graph, output_index)
    _make_sizes_dynamic(graph)
    _replace_by_layers(module)
    graph.lint()
    return fx.GraphModule(module, graph, "Model").eval()


def _select_output(graph: fx.Graph, index: int | None) -> None:
    """Keep one output, in place: that at ``index`` among the tensors, or the first that is ``[n, K]`` numbers."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    outputs = [value for value in flatten(output.args) if isinstance(value, fx.Node)]
    if index is not None:
        outputs = [[node for node in outputs if isinstance(node.meta.get("val"), Tensor)][index]]
    qualified = [node for node in outputs if is_class_scores(node.meta.get("val"))]
    if not qualified:
        shapes = ", ".join(shape_text(node.meta.get("val")) for node in outputs)
        raise ExportError(f"the model gives {shapes or 'nothing'}, and a classifier gives [n, K] numbers with K ≥ 2")
    output.args = (qualified[0],)


# --------------------------------------------------------------------------- sizes that depend on the number of rows


def _make_sizes_dynamic(graph: fx.Graph) -> None:
    """Replace operators that a size goes into by tensor methods: only then the ONNX export keeps the size open."""
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target in _EXPORTABLE:
            node.target, node.args = _EXPORTABLE[node.target], node.args[:2]
        name = node.target._schema.name.rpartition("::")[2]
        if name.startswith(("_assert", "sym_constrain")):
            if not node.users:
                graph.erase_node(node)
        elif name == "sym_size":
            node.op, node.target = "call_method", "size"
        elif any(
            isinstance(argument, fx.Node) and isinstance(argument.meta.get("val"), torch.SymInt)
            for argument in chain(flatten(node.args), flatten(node.kwargs))
        ):
            first = node.args[0] if node.args else None
            if isinstance(first, fx.Node) and isinstance(first.meta.get("val"), Tensor) and hasattr(Tensor, name):
                node.op, node.target = "call_method", name
            elif hasattr(torch, name):
                node.target = getattr(torch, name)


# --------------------------------------------------------------------------- operators replaced by layers


@dataclass(frozen=True)
class _LayerCall:
    """An operator that reads constant weights as a layer does.

    :param constants: names of the constants, first the one that the layer is named after.
    :param settings: what distinguishes layers with the same constants.
    :param input_argument: name of the operator's argument that is the layer's input.
    :param make: makes the layer from the constants.
    """

    constants: tuple[str, ...]
    settings: tuple[object, ...]
    input_argument: str
    make: Callable[[Mapping[str, Tensor]], nn.Module]


def _replace_by_layers(module: nn.Module) -> None:
    graph: fx.Graph = module.graph  # type: ignore[assignment]  # of a GraphModule
    groups: dict[tuple[object, ...], list[tuple[fx.Node, _LayerCall]]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and (call := _match_layer(node)) is not None:
            groups.setdefault((call.constants, call.settings), []).append((node, call))
    readers = _readers(graph)
    for group in groups.values():
        nodes = {node for node, _ in group}
        constants = group[0][1].constants
        if all(readers[path] <= nodes for path in constants):
            name = _add_layer(module, constants, group[0][1])
            for node, call in group:
                node.args, node.kwargs = (_arguments(node)[call.input_argument],), {}
                node.op, node.target = "call_module", name
                for getitem in [user for user in node.users if user.target is operator.getitem]:
                    getitem.replace_all_uses_with(node)
    for node in reversed(list(graph.nodes)):
        if node.op in ("get_attr", "call_function") and not node.users:
            graph.erase_node(node)


def _readers(graph: fx.Graph) -> dict[str, set[fx.Node]]:
    """The nodes that read each constant, directly or transposed."""
    readers: dict[str, set[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            users = chain.from_iterable(user.users if _is_transposed(user) else [user] for user in node.users)
            readers.setdefault(str(node.target), set()).update(users)
    return readers


def _add_layer(module: nn.Module, paths: tuple[str, ...], call: _LayerCall) -> str:
    """Replace these constants of the module by a layer that contains them; returns the layer's name."""
    constants = {path: _constant(module, path) for path in paths}
    layer = call.make(constants)
    parent, _, attribute = paths[0].rpartition(".")
    name = paths[0]
    is_weight = attribute in ("weight", "running_mean") and parent
    if is_weight and _contains_only(module.get_submodule(parent), parent, set(paths)):
        name = parent
    for path in paths:
        owner, _, attribute = path.rpartition(".")
        delattr(module.get_submodule(owner), attribute)
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, layer.eval())
    return name


def _constant(module: nn.Module, path: str) -> Tensor:
    value: Tensor = operator.attrgetter(path)(module)
    return value.detach()


def _contains_only(part: nn.Module, name: str, paths: set[str]) -> bool:
    contents = {f"{name}.{attribute}" for attribute, _ in chain(part.named_parameters(), part.named_buffers())}
    return contents <= paths | {f"{name}.num_batches_tracked"} and not list(part.children())


def _match_layer(node: fx.Node) -> _LayerCall | None:
    match = _LAYERS.get(node.target)
    if match is None or any(user.target is operator.getitem and user.args[1] != 0 for user in node.users):
        return None
    return match(_arguments(node))


def _arguments(node: fx.Node) -> dict[str, Any]:
    """An operator's arguments by name, with defaults."""
    schema = node.target._schema  # type: ignore[union-attr]  # an operator has one
    arguments = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    arguments |= dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
    return arguments | dict(node.kwargs)


def _path(value: object) -> str | None:
    """Name of a constant; None for other values."""
    return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else None


def _is_transposed(node: fx.Node) -> bool:
    """Whether the node is a transposed matrix."""
    if node.target is _aten.t.default:
        return True
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.ndim != 2:
        return False
    if node.target is _aten.permute.default:
        return flatten(node.args[1]) in ([1, 0], [-1, -2])
    return node.target is _aten.transpose.int and {int(axis) % 2 for axis in flatten(node.args[1:])} == {0, 1}


def _layer_call(
    input_argument: str,
    weight: object,
    bias: object,
    settings: Sequence[object],
    make: Callable[[Tensor, Tensor | None], nn.Module],
) -> _LayerCall | None:
    """A call of a layer with a weight and an optional bias; None if these are not constants."""
    weight_path, bias_path = _path(weight), _path(bias)
    if weight_path is None or (bias is not None and bias_path is None):
        return None
    constants = (weight_path,) if bias_path is None else (weight_path, bias_path)
    return _LayerCall(
        constants,
        tuple(settings),
        input_argument,
        lambda tensors: make(tensors[weight_path], tensors[bias_path] if bias_path else None),
    )


def _linear(arguments: Mapping[str, Any]) -> _LayerCall | None:
    return _layer_call("input", arguments["weight"], arguments["bias"], ("linear",), _make_linear)


def _matrix_product(
    arguments: Mapping[str, Any], left: str, right: str, bias_name: str | None = None
) -> _LayerCall | None:
    """``x Wᵀ``, or with a bias ``b + x Wᵀ``."""
    matrix = arguments[right]
    if (
        not isinstance(matrix, fx.Node)
        or not _is_transposed(matrix)
        or (arguments.get("alpha", 1), arguments.get("beta", 1)) != (1, 1)
    ):
        return None
    bias = arguments[bias_name] if bias_name else None
    shape = bias.meta["val"].shape if isinstance(bias, fx.Node) else (0,)
    if len(shape) != 1:
        return None
    return _layer_call(left, matrix.args[0], bias, ("linear",), _make_linear)


def _make_linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    return _with_constants(layer, weight=weight, bias=bias)


def _convolution(arguments: Mapping[str, Any], dimensions: int | None = None) -> _LayerCall | None:
    if arguments.get("transposed", False):
        return None
    classes: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}
    weight = arguments["weight"]
    if dimensions is None:
        dimensions = weight.meta["val"].ndim - 2
    if dimensions not in classes:
        return None
    settings = {
        name: value if isinstance(value := arguments[name], str) else _sizes(value, dimensions)
        for name in ("stride", "padding", "dilation")
    }
    groups = int(arguments["groups"])

    def make(weight: Tensor, bias: Tensor | None) -> nn.Module:
        layer: Any = classes[dimensions](
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            groups=groups,
            bias=bias is not None,
            dtype=weight.dtype,
            **settings,
        )
        return _with_constants(layer, weight=weight, bias=bias)

    return _layer_call("input", weight, arguments["bias"], ("convolution", groups, *settings.values()), make)


def _sizes(value: Any, dimensions: int) -> tuple[int, ...]:
    sizes = [value] if isinstance(value, int) else list(value)
    return tuple(sizes * dimensions if len(sizes) == 1 else sizes)


def _embedding(arguments: Mapping[str, Any]) -> _LayerCall | None:
    padding = int(arguments["padding_idx"])

    def make(weight: Tensor, _: Tensor | None) -> nn.Module:
        padding_idx = None if padding < 0 else padding
        layer: nn.Module = nn.Embedding.from_pretrained(weight.clone(), freeze=False, padding_idx=padding_idx)
        return layer

    return _layer_call("indices", arguments["weight"], None, ("embedding", padding), make)


def _layer_norm(arguments: Mapping[str, Any]) -> _LayerCall | None:
    shape, eps = tuple(arguments["normalized_shape"]), float(arguments["eps"])

    def make(weight: Tensor, bias: Tensor | None) -> nn.Module:
        layer = nn.LayerNorm(shape, eps, bias=bias is not None, dtype=weight.dtype)
        return _with_constants(layer, weight=weight, bias=bias)

    return _layer_call("input", arguments["weight"], arguments["bias"], ("layer_norm", shape, eps), make)


def _batch_norm(arguments: Mapping[str, Any]) -> _LayerCall | None:
    names = ("running_mean", "running_var", "weight", "bias")
    paths = {name: _path(arguments[name]) for name in names}
    eps, dimensions = float(arguments["eps"]), arguments["input"].meta["val"].ndim
    layer_class = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}.get(dimensions)
    is_affine = paths["weight"] is not None and paths["bias"] is not None
    is_plain = arguments["weight"] is None and arguments["bias"] is None
    if (
        arguments.get("training")
        or layer_class is None
        or not (is_affine or is_plain)
        or None in (paths["running_mean"], paths["running_var"])
    ):
        return None

    def make(tensors: Mapping[str, Tensor]) -> nn.Module:
        constants = {name: tensors[path] for name, path in paths.items() if path is not None}
        mean = constants["running_mean"]
        return _with_constants(layer_class(len(mean), eps, affine=is_affine, dtype=mean.dtype), **constants)

    ordered = [paths[name] for name in (("weight", "bias") if is_affine else ()) + names[:2]]
    return _LayerCall(tuple(map(str, ordered)), ("batch_norm", eps, layer_class), "input", make)


def _with_constants(layer: nn.Module, **constants: Tensor | None) -> nn.Module:
    """The layer, with these weights copied into it."""
    with torch.no_grad():
        for name, value in constants.items():
            if value is not None:
                getattr(layer, name).copy_(value)
    return layer


_LAYERS: dict[object, Callable[[Mapping[str, Any]], _LayerCall | None]] = {
    _aten.linear.default: _linear,
    _aten.addmm.default: lambda arguments: _matrix_product(arguments, "mat1", "mat2", "self"),
    _aten.mm.default: lambda arguments: _matrix_product(arguments, "self", "mat2"),
    _aten.matmul.default: lambda arguments: _matrix_product(arguments, "self", "other"),
    _aten.conv1d.default: lambda arguments: _convolution(arguments, 1),
    _aten.conv1d.padding: lambda arguments: _convolution(arguments, 1),
    _aten.conv2d.default: lambda arguments: _convolution(arguments, 2),
    _aten.conv2d.padding: lambda arguments: _convolution(arguments, 2),
    _aten.convolution.default: _convolution,
    _aten.embedding.default: _embedding,
    _aten.layer_norm.default: _layer_norm,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.batch_norm.default: _batch_norm,
    _aten._native_batch_norm_legit_no_training.default: _batch_norm,
}
