"""A stranger's ONNX classifier in the form that number formats are put into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, version_converter

from stillhouse.artifacts import require_own_tensors
from stillhouse.compress.export import run_onnx
from stillhouse.compress.outputs import choose_output
from stillhouse.compress.quantize import quietly
from stillhouse.compress.rows import Input
from stillhouse.compress.subject import Array, Feed
from stillhouse.errors import ExportError, PartError

__all__ = ["adopt", "graph_inputs", "graph_outputs"]

_OPSET = 18
_IR = 8  # of opset 18; before 4 a constant had to be an input, too
_SAME = 1e-5  # largest difference that preparing the graph may make, of answers of size 1


def adopt(
    path: Path, feed_of: Callable[[Sequence[Input]], Feed], output: str | None = None, labels: Array | None = None
) -> tuple[onnx.ModelProto, Feed]:
    """The graph with one output, ``[n, K]`` numbers, and the rows as it reads them.

    Its operators are brought to opset 18 and what is constant is computed, as far as the answers stay the same. Which
    of several outputs is kept: see :func:`~stillhouse.compress.outputs.choose_output`. A table of classes by name
    (``ZipMap``) gives way to the numbers that it is made of.

    :param feed_of: rows for these inputs.
    :param output: the name of the output to keep, where there are several.
    :param labels: class of each row, where that is known.
    :raises ExportError: naming the input and dimension, if more than the number of rows is left open, or that is not;
        or if there is no such output, or several that it may be.
    """
    model = _read(path)
    feed = feed_of(graph_inputs(model))
    _leave_output(model, feed, output, labels)
    wanted = _answers(model, feed)
    for prepare in (_newer, _preprocessed):
        changed = prepare(model)
        if changed is not None and _same(changed, feed, wanted):
            model = changed
    _name_nodes(model)
    return model, feed


def graph_inputs(model: onnx.ModelProto) -> list[Input]:
    """What a graph reads.

    :raises ExportError: naming the input and dimension, if more than the number of rows is left open, or that is not.
    """
    return [_input(value) for value in model.graph.input]


def graph_outputs(path: Path) -> list[str]:
    """Names of all outputs of a graph in a file."""
    return [value.name for value in onnx.load(path, load_external_data=False).graph.output]


def _read(path: Path) -> onnx.ModelProto:
    try:
        require_own_tensors(path)
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except PartError as error:
        raise ExportError(f"the ONNX model is broken: {error}") from error
    except Exception as error:  # of a stranger's file: the library's errors have no base of their own
        raise ExportError(f"the ONNX model is broken: {type(error).__name__}: {error}") from error
    if model.functions:
        from onnx.inliner import inline_local_functions

        model = inline_local_functions(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, _IR)
    if not inputs:
        raise ExportError("the ONNX model has no input")
    return model


def _input(value: onnx.ValueInfoProto) -> Input:
    if not value.type.HasField("tensor_type"):
        raise ExportError(f"input {value.name} is no tensor: compress a model whose inputs are arrays")
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not kind.shape.dim:
        raise ExportError(f"input {value.name} has no shape: export the model with [n, …] as its inputs' shapes")
    first, *others = kind.shape.dim
    if first.HasField("dim_value"):
        raise ExportError(
            f"input {value.name} takes exactly {first.dim_value} rows at once: export the model with the first "
            f"dimension left open"
        )
    for place, size in enumerate(others, start=1):
        if not size.HasField("dim_value"):
            named = f" ({size.dim_param})" if size.dim_param else ""
            raise ExportError(
                f"dimension {place}{named} of input {value.name} is left open, and a compressed model has fixed sizes: "
                f"export the model with a fixed one, and pad its rows to it"
            )
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return Input(value.name, dtype, tuple(size.dim_value for size in others))


# --------------------------------------------------------------------------- the output


def _leave_output(model: onnx.ModelProto, feed: Feed, output: str | None, labels: Array | None) -> None:
    """Leave the graph the one output that is compressed, and what that needs."""
    makers = {output: node for node in model.graph.node for output in node.output}
    names = {}  # of each output's numbers: what it is called outside
    for value in list(model.graph.output):
        maker = makers.get(value.name)
        names[value.name] = value.name
        if maker is not None and maker.op_type == "ZipMap":
            names[maker.input[0]] = names.pop(value.name)
            model.graph.output.remove(value)
            model.graph.output.append(helper.make_tensor_value_info(maker.input[0], onnx.TensorProto.FLOAT, None))
    tensors = [value.name for value in model.graph.output]
    answers = dict(zip((names[name] for name in tensors), _run(model, feed), strict=True))
    chosen = choose_output(answers, output, labels)
    (tensor,) = (name for name in tensors if names[name] == chosen)
    kind = helper.np_dtype_to_tensor_dtype(answers[chosen].dtype)
    kept = helper.make_tensor_value_info(tensor, kind, [_batch(model), answers[chosen].shape[1]])
    del model.graph.output[:]
    model.graph.output.append(kept)
    _leave_needed(model)


def _batch(model: onnx.ModelProto) -> str:
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_param or "n"


def _leave_needed(model: onnx.ModelProto) -> None:
    """Remove nodes and constants that the output does not depend on."""
    wanted, kept = {value.name for value in model.graph.output}, []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= _reads(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in wanted]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    del model.graph.value_info[:]


def _reads(node: onnx.NodeProto) -> set[str]:
    """Tensors that a node and the graphs inside it read."""
    found = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                found |= _reads(inner)
            found |= {value.name for value in graph.output}
    return found


def _run(model: onnx.ModelProto, feed: Feed) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found: list[Any] = session.run(None, dict(feed))
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise ExportError(f"ONNX Runtime cannot run the model on these rows: {error}") from error
    return found


def _answers(model: onnx.ModelProto, feed: Feed) -> Array:
    """What it answers to all rows, which must be what it answers to few of them."""
    whole = run_onnx(model, feed)
    for count in (1, 3):
        few = run_onnx(model, {name: array[:count] for name, array in feed.items()})
        if few.shape != (count, whole.shape[1]) or len(whole) != len(next(iter(feed.values()))):
            raise ExportError(
                f"the model answers {count} rows with {list(few.shape)} numbers: one row for each is needed"
            )
    return whole


# --------------------------------------------------------------------------- preparing


def _newer(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """With opset 18, if it is older; None where the converter cannot."""
    versions = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    if not versions or min(versions) >= _OPSET:
        return None
    try:
        changed = version_converter.convert_version(model, _OPSET)
    except Exception:  # of a stranger's graph; it stays as it is
        return None
    return changed


def _preprocessed(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """With constants computed and operators joined, as ONNX Runtime's quantisers want it; None where that fails."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as folder:
        source, target = Path(folder, "source.onnx"), Path(folder, "model.onnx")
        onnx.save(model, source)  # the preprocessor moves the weights of a model in memory elsewhere
        try:
            with quietly():
                quant_pre_process(source, target, skip_symbolic_shape=True)
            return onnx.load(target)
        except Exception:  # of a stranger's graph; it stays as it is
            return None


def _same(changed: onnx.ModelProto, feed: Feed, wanted: Array) -> bool:
    """Whether the answers are the same, on all rows and on one."""
    try:
        found, one = run_onnx(changed, feed), run_onnx(changed, {name: array[:1] for name, array in feed.items()})
    except ExportError:
        return False
    scale = max(1.0, float(np.abs(wanted).max()))
    close = found.shape == wanted.shape and float(np.abs(found - wanted).max()) <= _SAME * scale
    return close and one.shape == (1, wanted.shape[1])


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own: layers are told apart by it."""
    taken: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{place}"
        taken.add(node.name)
