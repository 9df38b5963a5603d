"""A foreign classifier as a compression target: a torch program (``.pt2``) or an ONNX graph, with rows."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import torch
from scipy.special import softmax
from torch import Tensor
from torch.nn import functional

from stillhouse.compress.build import ArtifactWriter, BuiltModel
from stillhouse.compress.export import export_onnx, run_onnx, run_torch
from stillhouse.compress.foreign.layers import layers_from_export
from stillhouse.compress.foreign.onnx_graph import load_classifier, read_output_names
from stillhouse.compress.foreign.outputs import are_probabilities, choose_output
from stillhouse.compress.foreign.rows import build_feed
from stillhouse.compress.foreign.torch_program import (
    name_unsupported_layer,
    read_inputs,
    read_program,
    require_same_outputs,
    run_program,
)
from stillhouse.compress.manifest import write_manifest
from stillhouse.compress.target import Array, CompressionTarget, Feed, ModelState
from stillhouse.config import recipe_name
from stillhouse.errors import DataError, ExportError
from stillhouse.values import text_of

__all__ = [
    "MIN_ROWS",
    "Score",
    "model_writer",
    "output_names",
    "target_from_file",
    "target_from_onnx",
    "target_from_program",
]

MIN_ROWS = 32
"""With fewer rows neither the activation ranges nor the loss by compression can be estimated."""

Rows = Array | Mapping[str, Array] | pd.DataFrame
"""Rows as :func:`~stillhouse.compress.foreign.rows.build_feed` reads them."""

Score = Callable[[Array, Array], float]
"""From probabilities ``[n, K]`` and labels ``[n]`` to a score in 0…1, higher is better."""

_VALIDATION_EVERY = 4  # every 4th row is a validation row
_BATCH_ROWS = 64
_LEARNING_RATE = 1e-3


def target_from_file(
    path: Path, rows: Rows, labels: Array | None = None, score: Score | None = None, output: str | None = None
) -> CompressionTarget:
    """The model in a file as a compression target; equal arguments give an equal target.

    Of every four rows three are for training and calibration, and the fourth is for validation. Quality is ``score`` on
    the labels, by default the accuracy; without labels it is the share of rows with the same decision as the float32
    model. Recovery is self-distillation towards the model's own outputs on the training rows.

    :param path: ``….pt2``, an exported torch program, to which structural steps and number formats apply; or an ONNX
        graph, to which only number formats apply.
    :param rows: at least :data:`MIN_ROWS`, see :func:`~stillhouse.compress.foreign.rows.build_feed`.
    :param labels: class of each row, 0…K − 1.
    :param output: the name of the output with the class scores, if the model has several; see
        :func:`~stillhouse.compress.foreign.outputs.choose_output`.
    :raises ExportError: if the model cannot be compressed, naming the input or the layer.
    :raises DataError: if the rows or labels do not fit the model, or are too few.
    """
    make_target = target_from_program if path.suffix == ".pt2" else target_from_onnx
    return make_target(path, rows, labels, score, output)


def output_names(path: Path) -> list[str]:
    """Names of a model's outputs, as :func:`~stillhouse.compress.foreign.outputs.choose_output` accepts them."""
    if path.suffix != ".pt2":
        return read_output_names(path)
    program = read_program(path)
    keys = program.call_spec.out_spec.context if program.call_spec.out_spec.type is dict else []
    return [*map(str, program.graph_signature.user_outputs), *map(str, keys)]


def model_writer(source: str) -> ArtifactWriter:
    """A writer of ``model.onnx`` and ``manifest.json``.

    :param source: address of the model that was compressed.
    """
    return functools.partial(_write_model, source=source)


def _write_model(folder: Path, model: onnx.ModelProto, built: BuiltModel, *, source: str) -> None:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    entries = {
        "source": source,
        "variant": recipe_name(built.recipe),
        "method": [step.model_dump(mode="json") for step in built.recipe],
        "inputs": [value.name for value in model.graph.input],
        "output": model.graph.output[0].name,
    }
    write_manifest(folder, entries, built, ("model.onnx",))


# --------------------------------------------------------------------------- the two kinds of model


def target_from_program(
    path: Path, rows: Rows, labels: Array | None = None, score: Score | None = None, output: str | None = None
) -> CompressionTarget:
    """A torch program as a compression target; :func:`target_from_file` describes the arguments."""
    program = read_program(path)
    feed = _require_rows(build_feed(rows, read_inputs(program)))
    outputs = run_program(program, feed)
    chosen = choose_output(outputs, output, labels)
    output_index = [*outputs].index(chosen)
    module = layers_from_export(program, output_index)
    require_same_outputs(program, module, feed, output_index)
    scores = run_torch(module, feed, softmax=False)
    logits = not _are_probabilities(scores)
    training, validation = _split(feed)
    teacher_probs = _to_probabilities(scores, logits)
    output_kind = "logits" if logits else "probabilities"
    try:
        model = export_onnx(module, training, softmax=False, logits=logits, output=output_kind)
    except ExportError as error:
        raise name_unsupported_layer(module, error) from error
    return CompressionTarget(
        model=model,
        calibration=lambda _: training,
        validation=lambda _: validation,
        quality=_quality(teacher_probs, labels, score),
        state=ModelState(module),
        softmax=False,
        logits=logits,
        output=output_kind,
        content_hash=_content_hash(feed, labels),
        quality_name=_quality_name(teacher_probs, labels),
        notes=_notes(chosen, list(outputs), [tensor.dtype for tensor in module.state_dict().values()]),
        recover=lambda state, epochs: _recover(state, epochs, training, _training_part(teacher_probs), logits),
    )


def target_from_onnx(
    path: Path, rows: Rows, labels: Array | None = None, score: Score | None = None, output: str | None = None
) -> CompressionTarget:
    """An ONNX graph as a compression target; :func:`target_from_file` describes the arguments.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from torch import nn
        >>> rows = {"x": np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "model.onnx")
        ...     onnx.save(export_onnx(nn.Linear(4, 3).eval(), rows), path)
        ...     target = target_from_onnx(path, rows)
        >>> target.logits, target.quality(run_onnx(target.model, target.validation(None)))
        (False, 1.0)
    """
    model, feed = load_classifier(path, lambda inputs: _require_rows(build_feed(rows, inputs)), output, labels)
    scores = run_onnx(model, feed)
    logits = not _are_probabilities(scores)
    training, validation = _split(feed)
    reference_probs = _to_probabilities(scores, logits)
    return CompressionTarget(
        model=model,
        calibration=lambda _: training,
        validation=lambda _: validation,
        quality=_quality(reference_probs, labels, score),
        softmax=False,
        logits=logits,
        output=model.graph.output[0].name,
        content_hash=_content_hash(feed, labels),
        quality_name=_quality_name(reference_probs, labels),
        notes=_notes(model.graph.output[0].name, read_output_names(path), _number_types(model)),
    )


def _number_types(model: onnx.ModelProto) -> list[np.dtype[Any]]:
    return [np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)) for tensor in model.graph.initializer]


def _quality_name(probs: Array, labels: Array | None) -> str:
    """What quality measures, in words; the same rule as for the comparison of students."""
    if labels is None:
        return "the share of validation rows with the same decision as the float32 model (there are no labels)"
    validation_labels = _validation_part(np.asarray(labels))
    if probs.shape[1] > 2:
        return "the accuracy on the validation rows (more than two classes)"
    if len(np.unique(validation_labels)) < 2:
        return (
            f"the accuracy: the labels of all {len(validation_labels)} validation rows are "
            f"{text_of(validation_labels[0])}, and the AUC needs rows of both classes"
        )
    return "the AUC on the validation rows (two classes)"


def _notes(chosen: str, outputs: list[str], types: Sequence[Any]) -> tuple[str, ...]:
    """Notes on the choice among several outputs, and on weights that no number format applies to."""
    notes = []
    if len(outputs) > 1:
        notes.append(f"the output {chosen} is compressed, of {', '.join(outputs)}")
    if (n_float64 := sum(str(dtype).endswith("float64") for dtype in types)) and n_float64 >= len(types) / 2:
        notes.append(
            "the model's weights are float64, and the number formats apply to float32 only: the weights stay as they "
            "are. Log the model in float32 to reduce their size"
        )
    return tuple(notes)


def _are_probabilities(scores: Array) -> bool:
    """Whether every row is in 0…1 and sums to 1.

    :raises DataError: if some are not finite.
    """
    if n_invalid := int((~np.isfinite(scores).all(axis=1)).sum()):
        raise DataError(f"the model gives no finite numbers on {n_invalid} of {len(scores)} rows: leave those out")
    return are_probabilities(scores)


def _to_probabilities(scores: Array, logits: bool) -> Array:
    return np.asarray(softmax(scores, axis=1)) if logits else scores


# --------------------------------------------------------------------------- rows and quality


def _require_rows(feed: Feed) -> Feed:
    count = len(next(iter(feed.values())))
    if count < MIN_ROWS:
        raise DataError(f"{count} rows are too few to compress a model by: at least {MIN_ROWS} are needed")
    return feed


def _is_validation(count: int) -> Array:
    """For each row, whether it is a validation row."""
    return np.asarray(np.arange(count) % _VALIDATION_EVERY == _VALIDATION_EVERY - 1)


def _training_part(rows: Array) -> Array:
    training: Array = rows[~_is_validation(len(rows))]
    return training


def _validation_part(rows: Array) -> Array:
    validation: Array = rows[_is_validation(len(rows))]
    return validation


def _split(feed: Feed) -> tuple[Feed, Feed]:
    training = {name: np.ascontiguousarray(_training_part(array)) for name, array in feed.items()}
    return training, {name: np.ascontiguousarray(_validation_part(array)) for name, array in feed.items()}


def _quality(reference_probs: Array, labels: Array | None, score: Score | None) -> Callable[[Array], float]:
    """A function from a candidate's probabilities on the validation rows to its quality.

    :param reference_probs: probabilities of the float32 model on all rows.
    """
    if labels is None:
        decisions = _validation_part(reference_probs).argmax(axis=1)
        return lambda p: float((p.argmax(axis=1) == decisions).mean())
    validation_labels = _validation_part(_class_indices(np.asarray(labels), *reference_probs.shape))
    if score is None:
        return lambda p: float((p.argmax(axis=1) == validation_labels).mean())
    return lambda p: score(p, validation_labels)


def _class_indices(labels: Array, count: int, classes: int) -> Array:
    if labels.shape != (count,):
        raise DataError(f"there are {count} rows, and the labels are {list(labels.shape)}: one for each row is needed")
    are_integers = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and np.array_equal(labels, np.round(labels)))
    if not are_integers or labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels are the numbers of classes, 0…{classes - 1} for this model, and there are others: "
            f"{', '.join(map(str, np.unique(labels)[:5]))} …"
        )
    indices: Array = labels.astype(np.int64)
    return indices


def _content_hash(feed: Feed, labels: Array | None) -> str:
    digest = hashlib.sha256()
    for name, array in [*feed.items(), ("labels", np.asarray([] if labels is None else labels))]:
        content = json.dumps(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes()
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + content)
    return digest.hexdigest()[:16]


# --------------------------------------------------------------------------- recovery


def _recover(state: ModelState, epochs: int, feed: Feed, teacher_probs: Array, logits: bool) -> ModelState:
    """The state after self-distillation: Kullback–Leibler divergence, Adam, learning rate decreasing linearly to 0.

    Layers stay in evaluation mode, as in the program. Equal arguments give an equal state.

    :param teacher_probs: probabilities of the model before compression on the feed, ``[n, K]``.
    """
    module = copy.deepcopy(state.module).eval()
    parameters = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
    inputs = [torch.from_numpy(array) for array in feed.values()]
    targets = torch.from_numpy(np.ascontiguousarray(teacher_probs))
    steps = epochs * -(-len(targets) // _BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max(1, steps))
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for index in torch.randperm(len(targets), generator=generator).split(_BATCH_ROWS):
            log_probs = _log_probabilities(module(*(tensor[index] for tensor in inputs)), logits)
            loss = functional.kl_div(log_probs, targets[index].to(log_probs.dtype), reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    if not all(torch.isfinite(parameter).all() for parameter in parameters):
        raise ExportError("the weights are not finite any more after the recovery: leave the step out")
    return ModelState(module, state.columns)


def _log_probabilities(scores: Tensor, logits: bool) -> Tensor:
    return functional.log_softmax(scores, dim=1) if logits else scores.clamp(min=1e-12).log()
