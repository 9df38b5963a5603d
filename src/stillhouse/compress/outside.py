"""A stranger's classifier as the subject of compression: a torch program (``.pt2``) or an ONNX graph, and rows."""

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

from stillhouse.compress.adopt import adopt, graph_outputs
from stillhouse.compress.build import Built
from stillhouse.compress.export import export_onnx, run_onnx, run_torch
from stillhouse.compress.lift import lift, name_layer, program_answers, program_inputs, read_program, require_same
from stillhouse.compress.manifest import write_manifest
from stillhouse.compress.outputs import are_probabilities, choose_output
from stillhouse.compress.rows import feed_of
from stillhouse.compress.subject import Array, Feed, Form, Subject
from stillhouse.compress.workshop import Pack
from stillhouse.config import recipe_name
from stillhouse.errors import DataError, ExportError
from stillhouse.values import text_of

__all__ = ["FEWEST_ROWS", "Score", "model_pack", "outputs_of", "outside_subject"]

FEWEST_ROWS = 32
"""Fewer rows show neither the ranges of activations nor what compression costs."""

Score = Callable[[Array, Array], float]
"""From probabilities ``[n, K]`` and labels ``[n]`` to a score in 0…1, higher is better."""

_JUDGED_EVERY = 4
_BATCH = 64
_LEARNING_RATE = 1e-3


def outside_subject(
    path: Path,
    rows: Array | Mapping[str, Array] | pd.DataFrame,
    labels: Array | None = None,
    score: Score | None = None,
    output: str | None = None,
) -> Subject:
    """The model as the subject of compression; the same arguments give the same subject.

    Three of four rows are learned from, every fourth is judged. Quality is ``score`` of the labels, by default the
    share of rows that are decided right; without labels it is the share of rows that are decided as the float32 model
    decides them. Recovery is self-distillation: what the model itself said about the learned rows.

    :param path: ``….pt2``, an exported torch program, whose layers can be made smaller; or an ONNX graph, whose numbers
        can.
    :param output: the name of the output that decides, where the model has several; see
        :func:`~stillhouse.compress.outputs.choose_output`.
    :param rows: at least :data:`FEWEST_ROWS`, see :func:`~stillhouse.compress.rows.feed_of`.
    :param labels: class of each row, 0…K − 1.
    :raises ExportError: if the model cannot be compressed, naming the input or the layer.
    :raises DataError: if the rows or labels do not fit the model, or are too few.
    """
    kind = _torch_subject if path.suffix == ".pt2" else _onnx_subject
    return kind(path, rows, labels, score, output)


def outputs_of(path: Path) -> list[str]:
    """Names of a model's outputs, as :func:`~stillhouse.compress.outputs.choose_output` is told them."""
    if path.suffix != ".pt2":
        return graph_outputs(path)
    program = read_program(path)
    keys = program.call_spec.out_spec.context if program.call_spec.out_spec.type is dict else []
    return [*map(str, program.graph_signature.user_outputs), *map(str, keys)]


def model_pack(source: str) -> Pack:
    """Packs ``model.onnx`` and ``manifest.json``.

    :param source: address of the model that was compressed.
    """
    return functools.partial(_pack, source=source)


def _pack(folder: Path, model: onnx.ModelProto, built: Built, *, source: str) -> None:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    described = {
        "source": source,
        "variant": recipe_name(built.recipe),
        "method": [step.model_dump(mode="json") for step in built.recipe],
        "inputs": [each.name for each in model.graph.input],
        "output": model.graph.output[0].name,
    }
    write_manifest(folder, described, built, ("model.onnx",))


# --------------------------------------------------------------------------- the two kinds of model


def _torch_subject(path: Path, rows: Any, labels: Array | None, score: Score | None, wanted: str | None) -> Subject:
    program = read_program(path)
    feed = _enough(feed_of(rows, program_inputs(program)))
    given = program_answers(program, feed)
    chosen = choose_output(given, wanted, labels)
    module = lift(program, [*given].index(chosen))
    require_same(program, module, feed, [*given].index(chosen))
    answers = run_torch(module, feed, softmax=False)
    logits = not _are_probabilities(answers)
    learned, judged = _split(feed)
    teacher = _probabilities(answers, logits)
    output = "logits" if logits else "probabilities"
    try:
        model = export_onnx(module, learned, softmax=False, logits=logits, output=output)
    except ExportError as error:
        raise name_layer(module, error) from error
    return Subject(
        model=model,
        calibration=lambda _: learned,
        judged=lambda _: judged,
        quality=_quality(teacher, labels, score),
        form=Form(module),
        softmax=False,
        logits=logits,
        output=output,
        source=_source(feed, labels),
        measure=_measure(teacher, labels),
        notes=_notes(chosen, list(given), [each.dtype for each in module.state_dict().values()]),
        recover=lambda form, epochs: _recover(form, epochs, learned, _learned(teacher), logits),
    )


def _onnx_subject(path: Path, rows: Any, labels: Array | None, score: Score | None, wanted: str | None) -> Subject:
    model, feed = adopt(path, lambda inputs: _enough(feed_of(rows, inputs)), wanted, labels)
    answers = run_onnx(model, feed)
    logits = not _are_probabilities(answers)
    learned, judged = _split(feed)
    return Subject(
        model=model,
        calibration=lambda _: learned,
        judged=lambda _: judged,
        quality=_quality(_probabilities(answers, logits), labels, score),
        softmax=False,
        logits=logits,
        output=model.graph.output[0].name,
        source=_source(feed, labels),
        measure=_measure(_probabilities(answers, logits), labels),
        notes=_notes(model.graph.output[0].name, graph_outputs(path), _number_types(model)),
    )


def _number_types(model: onnx.ModelProto) -> list[np.dtype[Any]]:
    return [np.dtype(onnx.helper.tensor_dtype_to_np_dtype(each.data_type)) for each in model.graph.initializer]


def _measure(said: Array, labels: Array | None) -> str:
    """What quality is, in words; the same condition as where models are compared in the loop."""
    if labels is None:
        return "the share of judged rows that are decided as the float32 model decides them (there are no labels)"
    judged = _judged(np.asarray(labels))
    if said.shape[1] > 2:
        return "the share of right decisions on the judged rows (more than two classes)"
    if len(np.unique(judged)) < 2:
        return (
            f"the share of right decisions: the labels of all {len(judged)} judged rows are {text_of(judged[0])}, "
            f"and the AUC needs rows of both classes"
        )
    return "the AUC on the judged rows (two classes)"


def _notes(chosen: str, outputs: list[str], types: Sequence[Any]) -> tuple[str, ...]:
    """Which of several outputs it is, and what stays as it is."""
    notes = []
    if len(outputs) > 1:
        notes.append(f"the output {chosen} is compressed, of {', '.join(outputs)}")
    if (wide := sum(str(each).endswith("float64") for each in types)) and wide >= len(types) / 2:
        notes.append(
            "the model's weights are float64, and every number format is made of float32: they stay as they are. "
            "Log the model in float32 to make its numbers smaller"
        )
    return tuple(notes)


def _are_probabilities(answers: Array) -> bool:
    """Whether every row is in 0…1 and sums to 1.

    :raises DataError: if some are not finite.
    """
    if strange := int((~np.isfinite(answers).all(axis=1)).sum()):
        raise DataError(f"the model gives no finite numbers on {strange} of {len(answers)} rows: leave those out")
    return are_probabilities(answers)


def _probabilities(answers: Array, logits: bool) -> Array:
    return np.asarray(softmax(answers, axis=1)) if logits else answers


# --------------------------------------------------------------------------- rows and quality


def _enough(feed: Feed) -> Feed:
    count = len(next(iter(feed.values())))
    if count < FEWEST_ROWS:
        raise DataError(f"{count} rows are too few to compress a model by: at least {FEWEST_ROWS} are needed")
    return feed


def _places(count: int) -> Array:
    """Of each row, whether it is judged."""
    return np.asarray(np.arange(count) % _JUDGED_EVERY == _JUDGED_EVERY - 1)


def _learned(rows: Array) -> Array:
    found: Array = rows[~_places(len(rows))]
    return found


def _judged(rows: Array) -> Array:
    found: Array = rows[_places(len(rows))]
    return found


def _split(feed: Feed) -> tuple[Feed, Feed]:
    learned = {name: np.ascontiguousarray(_learned(array)) for name, array in feed.items()}
    return learned, {name: np.ascontiguousarray(_judged(array)) for name, array in feed.items()}


def _quality(said: Array, labels: Array | None, score: Score | None) -> Callable[[Array], float]:
    """From what a candidate says about the judged rows.

    :param said: what the float32 model says about all rows.
    """
    if labels is None:
        wanted = _judged(said).argmax(axis=1)
        return lambda p: float((p.argmax(axis=1) == wanted).mean())
    truth = _judged(_indices(np.asarray(labels), *said.shape))
    if score is None:
        return lambda p: float((p.argmax(axis=1) == truth).mean())
    return lambda p: score(p, truth)


def _indices(labels: Array, count: int, classes: int) -> Array:
    if labels.shape != (count,):
        raise DataError(f"there are {count} rows, and the labels are {list(labels.shape)}: one for each row is needed")
    whole = labels.dtype.kind in "iub" or (labels.dtype.kind == "f" and np.array_equal(labels, np.round(labels)))
    if not whole or labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels are the numbers of classes, 0…{classes - 1} for this model, and there are others: "
            f"{', '.join(map(str, np.unique(labels)[:5]))} …"
        )
    found: Array = labels.astype(np.int64)
    return found


def _source(feed: Feed, labels: Array | None) -> str:
    found = hashlib.sha256()
    for name, array in [*feed.items(), ("labels", np.asarray([] if labels is None else labels))]:
        content = json.dumps(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes()
        found.update(f"{name} {array.dtype} {array.shape} ".encode() + content)
    return found.hexdigest()[:16]


# --------------------------------------------------------------------------- recovery


def _recover(form: Form, epochs: int, feed: Feed, teacher: Array, logits: bool) -> Form:
    """The form after learning what the model itself said: Kullback–Leibler, Adam, the rate falling to nothing.

    Layers stay in evaluation mode, as the program has them. The same arguments give the same form.
    """
    module = copy.deepcopy(form.module).eval()
    weights = [each for each in module.parameters() if each.is_floating_point()]
    for each in weights:
        each.requires_grad_(True)
    optimizer = torch.optim.Adam(weights, lr=_LEARNING_RATE)
    inputs = [torch.from_numpy(array) for array in feed.values()]
    wanted = torch.from_numpy(np.ascontiguousarray(teacher))
    steps = epochs * -(-len(wanted) // _BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max(1, steps))
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for places in torch.randperm(len(wanted), generator=order).split(_BATCH):
            said = _log_probabilities(module(*(each[places] for each in inputs)), logits)
            loss = functional.kl_div(said, wanted[places].to(said.dtype), reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    if not all(torch.isfinite(each).all() for each in weights):
        raise ExportError("the form's weights are not finite any more after its recovery: leave the step out")
    return Form(module, form.columns)


def _log_probabilities(given: Tensor, logits: bool) -> Tensor:
    return functional.log_softmax(given, dim=1) if logits else given.clamp(min=1e-12).log()
