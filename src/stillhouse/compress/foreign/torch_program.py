"""An exported torch program (``.pt2``): its inputs, its outputs, and the comparison with a module made from it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from stillhouse.artifacts import sanitize_program
from stillhouse.compress.foreign.rows import ModelInput
from stillhouse.compress.target import Feed
from stillhouse.errors import ExportError, PartError

__all__ = [
    "flatten",
    "input_of_node",
    "is_class_scores",
    "layer_of_node",
    "name_unsupported_layer",
    "placeholders",
    "read_inputs",
    "read_program",
    "require_same_outputs",
    "run_program",
    "shape_text",
]

_MAX_DIFFERENCE = 1e-5  # between the outputs of the program and the module, relative to outputs of size 1
_MIN_CLASSES = 2


def read_program(path: Path) -> ExportedProgram:
    """A program from its file, checked first: nothing in it is unpickled, imported or evaluated.

    :raises ExportError: if it contains more than a graph and tensors, naming what, or cannot be read.
    """
    try:
        return torch.export.load(sanitize_program(path))
    except PartError as error:
        raise ExportError(f"the exported program cannot be read here: {error}") from error
    except Exception as error:  # the library's errors have no common base class
        raise ExportError(f"the exported program cannot be read here: {type(error).__name__}: {error}") from error


def read_inputs(program: ExportedProgram) -> tuple[ModelInput, ...]:
    """The inputs of the program.

    :raises ExportError: naming the input, unless its number of rows is open and its other sizes are fixed.
    """
    return tuple(input_of_node(node, program) for node in placeholders(program.module(check_guards=False).graph))


def run_program(program: ExportedProgram, feed: Feed) -> dict[str, Any]:
    """The program's outputs on all rows, by their key in the output dictionary, or by their operator's name.

    :raises ExportError: if the program fails on these rows.
    """
    module: Any = program.module(check_guards=False)
    rows = len(next(iter(feed.values())))
    outputs = _call(module, feed, rows)
    tensors = _tensors(outputs)
    names = list(map(str, outputs)) if isinstance(outputs, Mapping) and len(outputs) == len(tensors) else []
    names = names or list(map(str, program.graph_signature.user_outputs))
    if len(set(names)) != len(tensors):
        names = [f"output_{index}" for index in range(len(tensors))]
    return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}


def _call(module: nn.Module, feed: Feed, count: int) -> Any:
    """The module's outputs on the first ``count`` rows."""
    inputs = tuple(torch.from_numpy(array[:count]) for array in feed.values())
    try:
        with torch.no_grad():
            return module(*inputs)
    except Exception as error:  # a foreign program may raise any exception
        raise ExportError(
            f"the model fails on {count} rows of {', '.join(feed)}: {type(error).__name__}: {error}"
        ) from error


def name_unsupported_layer(module: fx.GraphModule, error: ExportError) -> ExportError:
    """The same error; if ONNX does not have an operator, with the names of the layers that use it."""
    operator = re.search(r"operator '\w+::(\w+)'", str(error))
    if operator is None:
        return error
    layers = dict.fromkeys(
        layer_of_node(node)
        for node in module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.name.endswith(f"::{operator[1]}")
    )
    return ExportError(f"{', '.join(layers)} uses {operator[1]}, which ONNX has no operator for: {error}")


def layer_of_node(node: fx.Node) -> str:
    """The layer that a node was part of, in words."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [path for path, _ in stack.values() if path]
    return f"layer {names[-1]}" if names else "the model itself"


def require_same_outputs(
    program: ExportedProgram, module: nn.Module, feed: Feed, output_index: int | None = None
) -> None:
    """Compare a module made from the program with the program, on all rows, three rows and one row.

    :raises ExportError: with the difference, if they differ, or the program fails on these rows.
    """
    original: Any = program.module(check_guards=False)
    rows = len(next(iter(feed.values())))
    for count in dict.fromkeys((rows, min(rows, 3), 1)):
        tensors, actual = _tensors(_call(original, feed, count)), _call(module, feed, count)
        expected = (
            next(tensor for tensor in tensors if is_class_scores(tensor))
            if output_index is None
            else tensors[output_index]
        )
        difference = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1.0))
        if not difference <= _MAX_DIFFERENCE:
            raise ExportError(
                f"converted to layers the model answers {count} rows differently, by {difference:.3g} (allowed: "
                f"{_MAX_DIFFERENCE:g}): it cannot be compressed"
            )


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    """The graph's input nodes."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def input_of_node(node: fx.Node, program: ExportedProgram) -> ModelInput:
    """The model input of a placeholder.

    :raises ExportError: naming the input, unless its number of rows is open and its other sizes are fixed.
    """
    value, name = node.meta.get("val"), str(node.target)
    if not isinstance(value, Tensor):
        raise ExportError(f"input {name} is not a tensor: export the model with tensors as its only inputs")
    if not value.ndim or not _is_open(value.shape[0]):
        fixed = value.shape[0] if value.ndim else "no"
        raise ExportError(
            f"input {name} takes exactly {fixed} rows at once: the number of rows was fixed when the model was "
            f"exported. Log it again with an input example of two rows or more and −1 as the signature's first size"
        )
    for axis, size in enumerate(value.shape[1:], start=1):
        if _is_open(size):
            raise ExportError(
                f"dimension {axis} of input {name} is left open, and a compressed model has fixed sizes: log the "
                f"model with a fixed one, and pad its rows to it"
            )
    rows: Any = value.shape[0]
    bounds = program.range_constraints.get(rows.node.expr)
    if bounds is not None and (bounds.lower > 2 or bounds.upper < sys.maxsize):
        raise ExportError(
            f"input {name} takes {bounds.lower} to {bounds.upper} rows at once: log the model with any number of rows"
        )
    empty = torch.empty(0, dtype=value.dtype)
    try:
        dtype = empty.numpy().dtype
    except TypeError as error:
        raise ExportError(
            f"input {name} is {value.dtype}, which NumPy does not have: log the model in float32"
        ) from error
    return ModelInput(name, dtype, tuple(int(size) for size in value.shape[1:]))


def _is_open(size: object) -> bool:
    """Whether the program leaves a dimension open."""
    return isinstance(size, torch.SymInt)


def is_class_scores(value: object) -> bool:
    """Whether a tensor is ``[n, K]`` floating-point numbers with a fixed K ≥ 2."""
    return (
        isinstance(value, Tensor)
        and value.ndim == 2
        and value.is_floating_point()
        and not _is_open(value.shape[1])
        and value.shape[1] >= _MIN_CLASSES
    )


def shape_text(value: object) -> str:
    """A tensor's shape, or the type of another value, for messages."""
    return str([str(size) for size in value.shape] if isinstance(value, Tensor) else type(value).__name__)


def _tensors(outputs: object) -> list[Tensor]:
    return [value for value in flatten(outputs) if isinstance(value, Tensor)]


def flatten(value: object) -> list[Any]:
    """The elements of nested lists, tuples and dictionaries, in order."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return list(chain.from_iterable(map(flatten, value)))
    return [value]
