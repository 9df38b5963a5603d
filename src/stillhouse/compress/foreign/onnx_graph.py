"""A foreign ONNX classifier, prepared for ONNX Runtime's quantisers."""

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
from stillhouse.compress.foreign.outputs import choose_output
from stillhouse.compress.foreign.rows import ModelInput
from stillhouse.compress.steps.onnxruntime_quantizer import silence_onnxruntime
from stillhouse.compress.target import Array, Feed
from stillhouse.errors import ExportError, PartError

__all__ = ["load_classifier", "read_graph_inputs", "read_output_names"]

_OPSET = 18
_IR_VERSION = 8  # of opset 18; before version 4 every constant had to be an input as well
_MAX_DIFFERENCE = 1e-5  # of the outputs by preparing the graph, relative to outputs of size 1


def load_classifier(
    path: Path,
    make_feed: Callable[[Sequence[ModelInput]], Feed],
    output: str | None = None,
    labels: Array | None = None,
) -> tuple[onnx.ModelProto, Feed]:
    """The graph with a single output of ``[n, K]`` numbers, and the rows as it reads them.

    Its operators are converted to opset 18 and constant parts are computed, as long as the outputs do not change. For
    the choice among several outputs see :func:`~stillhouse.compress.foreign.outputs.choose_output`. A table of classes
    by name (``ZipMap``) is replaced by the array that it is made from.

    :param make_feed: rows for the given inputs.
    :param output: the name of the output to compress, if there are several.
    :param labels: class of each row, if known.
    :raises ExportError: naming the input and dimension, if a dimension other than the number of rows is open, or the
        number of rows is fixed; or if the output does not exist, or several outputs qualify.
    """
    model = _read_model(path)
    feed = make_feed(read_graph_inputs(model))
    _select_output(model, feed, output, labels)
    reference = _require_row_wise(model, feed)
    for prepare in (_convert_opset, _preprocess):
        prepared = prepare(model)
        if prepared is not None and _is_equivalent(prepared, feed, reference):
            model = prepared
    _name_nodes(model)
    return model, feed


def read_graph_inputs(model: onnx.ModelProto) -> list[ModelInput]:
    """The inputs of a graph.

    :raises ExportError: naming the input and dimension, if a dimension other than the number of rows is open, or the
        number of rows is fixed.
    """
    return [_input(value) for value in model.graph.input]


def read_output_names(path: Path) -> list[str]:
    """Names of all outputs of the graph in a file."""
    return [value.name for value in onnx.load(path, load_external_data=False).graph.output]


def _read_model(path: Path) -> onnx.ModelProto:
    try:
        require_own_tensors(path)
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except PartError as error:
        raise ExportError(f"the ONNX model is broken: {error}") from error
    except Exception as error:  # the library's errors have no common base class
        raise ExportError(f"the ONNX model is broken: {type(error).__name__}: {error}") from error
    if model.functions:
        from onnx.inliner import inline_local_functions

        model = inline_local_functions(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    if not inputs:
        raise ExportError("the ONNX model has no input")
    return model


def _input(value: onnx.ValueInfoProto) -> ModelInput:
    if not value.type.HasField("tensor_type"):
        raise ExportError(f"input {value.name} is not a tensor: compress a model whose inputs are arrays")
    tensor_type = value.type.tensor_type
    if not tensor_type.HasField("shape") or not tensor_type.shape.dim:
        raise ExportError(f"input {value.name} has no shape: export the model with [n, …] as its inputs' shapes")
    first, *others = tensor_type.shape.dim
    if first.HasField("dim_value"):
        raise ExportError(
            f"input {value.name} takes exactly {first.dim_value} rows at once: export the model with the first "
            f"dimension left open"
        )
    for axis, size in enumerate(others, start=1):
        if not size.HasField("dim_value"):
            parameter = f" ({size.dim_param})" if size.dim_param else ""
            raise ExportError(
                f"dimension {axis}{parameter} of input {value.name} is left open, and a compressed model has fixed "
                f"sizes: export the model with a fixed one, and pad its rows to it"
            )
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor_type.elem_type))
    return ModelInput(value.name, dtype, tuple(size.dim_value for size in others))


# --------------------------------------------------------------------------- the output


def _select_output(model: onnx.ModelProto, feed: Feed, output: str | None, labels: Array | None) -> None:
    """Reduce the graph to the output that is compressed, in place."""
    producers = {name: node for node in model.graph.node for name in node.output}
    public_names = {}  # by the name of an output's array: the name of the output
    for value in list(model.graph.output):
        producer = producers.get(value.name)
        public_names[value.name] = value.name
        if producer is not None and producer.op_type == "ZipMap":
            public_names[producer.input[0]] = public_names.pop(value.name)
            model.graph.output.remove(value)
            model.graph.output.append(helper.make_tensor_value_info(producer.input[0], onnx.TensorProto.FLOAT, None))
    tensors = [value.name for value in model.graph.output]
    outputs = dict(zip((public_names[name] for name in tensors), _run(model, feed), strict=True))
    chosen = choose_output(outputs, output, labels)
    (tensor,) = (name for name in tensors if public_names[name] == chosen)
    element_type = helper.np_dtype_to_tensor_dtype(outputs[chosen].dtype)
    selected = helper.make_tensor_value_info(tensor, element_type, [_batch_dimension(model), outputs[chosen].shape[1]])
    del model.graph.output[:]
    model.graph.output.append(selected)
    _remove_unused(model)


def _batch_dimension(model: onnx.ModelProto) -> str:
    return model.graph.input[0].type.tensor_type.shape.dim[0].dim_param or "n"


def _remove_unused(model: onnx.ModelProto) -> None:
    """Remove nodes and constants that the output does not depend on, in place."""
    used_tensors, used_nodes = {value.name for value in model.graph.output}, []
    for node in reversed(model.graph.node):
        if used_tensors & set(node.output):
            used_nodes.append(node)
            used_tensors |= _tensors_read(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(used_nodes))
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used_tensors]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    del model.graph.value_info[:]


def _tensors_read(node: onnx.NodeProto) -> set[str]:
    """Names of the tensors that a node and its subgraphs read."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                names |= _tensors_read(inner)
            names |= {value.name for value in graph.output}
    return names


def _run(model: onnx.ModelProto, feed: Feed) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs: list[Any] = session.run(None, dict(feed))
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise ExportError(f"ONNX Runtime cannot run the model on these rows: {error}") from error
    return outputs


def _require_row_wise(model: onnx.ModelProto, feed: Feed) -> Array:
    """The model's output on all rows, ``[n, K]``.

    :raises ExportError: if the number of output rows differs from the number of input rows, on all rows or on few.
    """
    outputs = run_onnx(model, feed)
    for count in (1, 3):
        few = run_onnx(model, {name: array[:count] for name, array in feed.items()})
        if few.shape != (count, outputs.shape[1]) or len(outputs) != len(next(iter(feed.values()))):
            raise ExportError(
                f"the model answers {count} rows with {list(few.shape)} numbers: one row for each is needed"
            )
    return outputs


# --------------------------------------------------------------------------- preparing


def _convert_opset(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The graph in opset 18, if its opset is older; None if it is not, or the converter fails."""
    versions = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    if not versions or min(versions) >= _OPSET:
        return None
    try:
        converted = version_converter.convert_version(model, _OPSET)
    except Exception:  # the library's errors have no common base class; the graph is not changed
        return None
    return converted


def _preprocess(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The graph with constants computed and operators fused, as ONNX Runtime's quantisers need it; None on failure."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as folder:
        source, target = Path(folder, "source.onnx"), Path(folder, "model.onnx")
        onnx.save(model, source)  # given a model in memory, the preprocessor would move its weights to other files
        try:
            with silence_onnxruntime():
                quant_pre_process(source, target, skip_symbolic_shape=True)
            return onnx.load(target)
        except Exception:  # the library's errors have no common base class; the graph is not changed
            return None


def _is_equivalent(prepared: onnx.ModelProto, feed: Feed, reference: Array) -> bool:
    """Whether the outputs are equal to the reference on all rows, and of the right shape on one row."""
    try:
        outputs, first = run_onnx(prepared, feed), run_onnx(prepared, {name: array[:1] for name, array in feed.items()})
    except ExportError:
        return False
    scale = max(1.0, float(np.abs(reference).max()))
    is_close = outputs.shape == reference.shape and float(np.abs(outputs - reference).max()) <= _MAX_DIFFERENCE * scale
    return is_close and first.shape == (1, reference.shape[1])


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a unique name, in place: layers are identified by it."""
    used_names: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in used_names:
            node.name = f"{node.op_type}_{index}"
        used_names.add(node.name)
