"""A torch student as a small ONNX file that provably gives the same probabilities."""

from __future__ import annotations

import copy
import io
import itertools
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from scipy import special
from torch import Tensor, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]  # public, but not in __all__

from stillhouse.compress.subject import Array, Feed
from stillhouse.errors import ExportError

__all__ = ["INPUT", "OUTPUT", "TOLERANCE", "check_rows", "export_onnx", "run_onnx", "run_torch", "slim"]

INPUT = "x"
OUTPUT = "probabilities"
TOLERANCE = 1e-4  # largest |p_onnx − p_torch| of an exported student; float32 arithmetic gives about 1e-7
_OPSET = 18
_TRACED_ROWS = 3


def export_onnx(
    module: nn.Module, example: Feed, *, softmax: bool = True, logits: bool = False, output: str = OUTPUT
) -> onnx.ModelProto:
    """The module as an ONNX graph with the example's inputs, the rows' number left open; nodes keep layers' names.

    Refused unless ONNX Runtime agrees with torch within :data:`TOLERANCE` on every example row, all at once and
    one alone. The module itself is left as it is.

    :param module: called with the example's arrays in their order, gives ``[n, K]``.
    :param example: arrays ``[n, …]`` with n ≥ 1; rows as they occur, missing values (NaN) included.
    :param softmax: whether the graph is to end in a softmax: a student's does, its output is probabilities.
    :param logits: whether what it gives is logits; they are compared as probabilities.
    :param output: name of the graph's output.
    :raises ExportError: if the module cannot be expressed in ONNX, or the two disagree.
    """
    check_rows(example)
    wrapped = _frozen(module, softmax)
    model = _trace(wrapped, type(module).__name__, example, output)
    _verify(model, wrapped, type(module).__name__, example, logits)
    return model


def run_torch(module: nn.Module, feed: Feed, *, softmax: bool = True) -> Array:
    """What the module answers in evaluation mode, by default as probabilities: ``[n, K]``."""
    return _run(_frozen(module, softmax), feed)


def run_onnx(model: onnx.ModelProto | bytes, feed: Feed) -> Array:
    """The first output of an ONNX model, ``[n, K]``, computed on one CPU thread.

    :raises ExportError: if ONNX Runtime cannot load the model, or run it on these rows.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is in the exception
    try:
        content = model if isinstance(model, bytes) else model.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        result: Array = session.run(None, dict(feed))[0]
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise ExportError(f"ONNX Runtime cannot run the model on {_rows(feed)} rows: {error}") from error
    return result


def slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same arithmetic in fewer bytes: no names, documentation or shapes that only tools read.

    Constants become initializers, equal initializers become one, and everything but the graph's inputs and
    outputs gets the shortest free name. In a model of 30 kB that is a tenth. A graph with graphs inside (loops,
    branches) is left as it is: those read its names.
    """
    graph = model.graph
    if graph.sparse_initializer or any(each.g.ByteSize() for node in graph.node for each in node.attribute):
        return model
    names = {name: name for name in ("", *(value.name for value in (*graph.input, *graph.output)))}
    taken = frozenset(names)
    numbers = (f"{number:x}" for number in itertools.count(len(taken)))
    free = (number for number in numbers if number not in taken)
    constants = [node for node in graph.node if _holds_tensor(node)]
    tensors: dict[bytes, onnx.TensorProto] = {}
    for name, tensor in [(t.name, t) for t in graph.initializer] + [(c.output[0], c.attribute[0].t) for c in constants]:
        nameless = _copy(tensor, name="", doc_string="")
        content = nameless.SerializeToString()
        if content not in tensors:
            tensors[content] = _copy(nameless, name=next(free))
        names[name] = tensors[content].name

    def short(name: str) -> str:
        if name not in names:
            names[name] = next(free)
        return str(names[name])

    nodes = [
        onnx.NodeProto(
            op_type=node.op_type,
            domain=node.domain,
            input=[short(name) for name in node.input],
            output=[short(name) for name in node.output],
            attribute=node.attribute,
        )
        for node in graph.node
        if not _holds_tensor(node)
    ]
    domains = {node.domain for node in nodes}
    return helper.make_model(
        helper.make_graph(nodes, "student", graph.input, graph.output, list(tensors.values())),
        ir_version=model.ir_version,
        opset_imports=[opset for opset in model.opset_import if opset.domain in domains],
    )


def check_rows(feed: Feed) -> None:
    """Refuse a feed that no model reads.

    :raises ExportError: unless all arrays have the same number n ≥ 1 of rows.
    """
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in feed.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ExportError(f"needs arrays with the same number of rows, at least one; got {counts}")


class _Probabilities(nn.Module):
    """Softmax on a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.student = module

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.softmax(self.student(*inputs), dim=1)


def _frozen(module: nn.Module, softmax: bool) -> nn.Module:
    """A copy in evaluation mode on the CPU."""
    copied = copy.deepcopy(module).cpu()
    return (_Probabilities(copied) if softmax else copied).eval()


def _run(module: nn.Module, feed: Feed) -> Array:
    with torch.no_grad():
        result: Array = module(*(torch.from_numpy(array) for array in feed.values())).numpy()
    return result


def _rows(feed: Feed) -> int:
    return len(next(iter(feed.values())))


def _trace(module: nn.Module, name: str, example: Feed, output: str) -> onnx.ModelProto:
    # The tracing exporter costs 0.05 s in a fresh process; dynamo=True costs 2.6 s and 150 MB there (every refresh
    # is one) for the same operators. What tracing can get wrong is refused: Python control flow and shapes
    # that depend on the data warn, and such a warning is an error here; a frozen batch size fails in _verify.
    inputs = tuple(torch.from_numpy(np.resize(array, (_TRACED_ROWS, *array.shape[1:]))) for array in example.values())
    file = io.BytesIO()
    try:
        # Where it fails, the exporter prints the whole graph and cannot be asked not to; not among a command's output.
        torch._C._jit_set_onnx_log_output_stream("stderr")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.onnx.export(
                module,
                inputs,
                file,  # type: ignore[arg-type]  # the stub forgets file objects
                dynamo=False,
                opset_version=_OPSET,
                input_names=list(example),
                output_names=[output],
                dynamic_axes={each: {0: "batch"} for each in (*example, output)},
            )
    except Exception as error:  # torch's own, or whatever the module's forward raises
        raise ExportError(f"{name} cannot be exported to ONNX: {error}") from error
    for warning in caught:
        if issubclass(warning.category, TracerWarning):
            raise ExportError(f"{name} cannot be exported to ONNX: {warning.message}")
    return onnx.load_model_from_string(file.getvalue())


def _verify(model: onnx.ModelProto, module: nn.Module, name: str, example: Feed, logits: bool) -> None:
    """Compare ONNX Runtime with torch on all rows at once and on the first alone."""
    for feed in (example, {each: array[:1] for each, array in example.items()}):
        wanted, found = _run(module, feed), run_onnx(model, feed)
        if found.shape != wanted.shape:
            raise ExportError(
                f"the exported {name} answers {_rows(feed)} rows with {list(found.shape)} "
                f"probabilities, torch with {list(wanted.shape)}"
            )
        if logits:
            wanted, found = (special.softmax(each, axis=1) for each in (wanted, found))
        difference = float(np.abs(found - wanted).max())
        if not difference <= TOLERANCE:  # a NaN difference is not ≤ either
            raise ExportError(
                f"the exported {name} differs from torch by {difference:.3g} in probability "
                f"on {_rows(feed)} rows (allowed: {TOLERANCE:g})"
            )


def _holds_tensor(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == "Constant" and node.attribute[0].name == "value")


def _copy(tensor: onnx.TensorProto, **changes: str) -> onnx.TensorProto:
    result = onnx.TensorProto()
    result.CopyFrom(tensor)
    for field, value in changes.items():
        setattr(result, field, value)
    return result
