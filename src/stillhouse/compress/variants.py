"""A student as a compression target, and its variants: folders that run without stillhouse and torch."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from torch import nn

import stillhouse.variant
from stillhouse.compress.build import ArtifactWriter, BuiltModel
from stillhouse.compress.export import INPUT_NAME, export_onnx, run_torch
from stillhouse.compress.manifest import write_manifest
from stillhouse.compress.statistics import sample_evenly
from stillhouse.compress.target import Array, Columns, CompressionTarget, Feed, ModelState
from stillhouse.config import recipe_name
from stillhouse.errors import ExportError
from stillhouse.variant import width

__all__ = ["copy_code", "target_from_graph", "target_from_student", "variant_writer"]

_MAX_CALIBRATION_ROWS = 8192


def target_from_student(
    student: nn.Module,
    columns: Columns,
    actions: Sequence[str],
    *,
    calibration: Callable[[Columns], Array],
    validation: Callable[[Columns], Array],
    quality: Callable[[Array], float],
    slices: Callable[[Array], Mapping[str, float]] = lambda probs: {},
    recover: Callable[[ModelState, int], ModelState] | None = None,
    quality_name: str = "",
    content_hash: str = "",
) -> CompressionTarget:
    """A student as a compression target; :class:`CompressionTarget` describes the arguments.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> columns = [{"name": "hour", "type": "number"}, {"name": "age", "type": "number"}]
        >>> x = np.zeros((8, 2), np.float32)
        >>> target = target_from_student(
        ...     nn.Linear(2, 2).eval(),
        ...     columns,
        ...     ("no", "yes"),
        ...     calibration=lambda columns: x,
        ...     validation=lambda columns: x,
        ...     quality=lambda probs: float((probs.argmax(axis=1) == 0).mean()),
        ... )
        >>> target.model.graph.output[0].name
        'probabilities'

    :param student: encoded rows ``[n, D]`` to logits ``[n, K]``.
    :param calibration: columns to float32 ``[n, D]``, n ≥ 1, in order of time; ``validation`` likewise. Of more than
        8,192 calibration rows only 8,192 are used, half of them the newest: they determine activation ranges and the
        measured difference between two graphs.
    :raises ExportError: if the student cannot be exported, or does not fit ``actions`` and ``columns``.
    """
    rows = calibration(columns)
    if rows.ndim != 2 or rows.dtype != np.float32 or not len(rows):
        raise ExportError(f"needs float32 rows [n, D] with n ≥ 1, got {rows.dtype} {list(rows.shape)}")
    if rows.shape[1] != width(columns):
        raise ExportError(f"the calibration rows have {rows.shape[1]} values, but the columns make {width(columns)}")
    outputs = run_torch(student, {INPUT_NAME: rows[:1]})
    if outputs.shape[1] != len(actions):
        raise ExportError(f"the student has {outputs.shape[1]} logits, but there are {len(actions)} actions")

    def cached_feed(
        encode: Callable[[Columns], Array], max_rows: int | None = None
    ) -> Callable[[Columns | None], Feed]:
        feeds: dict[str, Feed] = {}  # by columns: a search has only a few different ones

        def feed(requested: Columns | None) -> Feed:
            columns_read = columns if requested is None else requested
            key = json.dumps(list(columns_read))
            if key not in feeds:
                all_rows = {INPUT_NAME: encode(columns_read)}
                feeds[key] = all_rows if max_rows is None else _sample_newest_half(all_rows, max_rows)
            return feeds[key]

        return feed

    calibration_feed = cached_feed(calibration, _MAX_CALIBRATION_ROWS)
    return CompressionTarget(
        model=export_onnx(student, calibration_feed(columns)),
        calibration=calibration_feed,
        validation=cached_feed(validation),
        quality=quality,
        slices=slices,
        quality_name=quality_name,
        state=ModelState(student, columns),
        recover=recover,
        content_hash=content_hash,
    )


def _sample_newest_half(feed: Feed, max_rows: int) -> Feed:
    """At most ``max_rows`` rows in order of time: half of them the newest, the others evenly spaced before these."""
    older = {name: array[: -(max_rows // 2)] for name, array in feed.items()}
    evenly = sample_evenly(older, max_rows - max_rows // 2)
    return {name: np.concatenate([evenly[name], array[-(max_rows // 2) :]]) for name, array in feed.items()}


def target_from_graph(
    model: onnx.ModelProto,
    columns: Columns,
    *,
    calibration: Array,
    validation: Array,
    quality: Callable[[Array], float],
    quality_name: str = "",
    content_hash: str = "",
) -> CompressionTarget:
    """An ONNX graph as a compression target: only its number format can change.

    :param calibration: rows encoded with ``columns``, float32 ``[n, D]``; ``validation`` likewise.
    """
    return CompressionTarget(
        model=model,
        calibration=lambda columns: {INPUT_NAME: calibration},
        validation=lambda columns: {INPUT_NAME: validation},
        quality=quality,
        quality_name=quality_name,
        content_hash=content_hash,
        graph_columns=columns,
    )


def variant_writer(agent: str, actions: Sequence[str], lineage: Mapping[str, str]) -> ArtifactWriter:
    """A writer of an agent's variants: ``model.onnx``, ``variant.py``, ``values.py``, ``manifest.json``.

    :param lineage: where the student comes from; it is written to the manifest unchanged.
    """

    return functools.partial(_write_variant, agent=agent, actions=tuple(actions), lineage=dict(lineage))


def copy_code(folder: Path) -> tuple[str, ...]:
    """Copy the Python files that every variant runs with into ``folder``, and return their names.

    This is the only list of these files; the manifest has a checksum of each.
    """
    names = ("variant.py", "values.py")
    for name in names:
        shutil.copyfile(Path(stillhouse.variant.__file__).with_name(name), folder / name)
    return names


def _write_variant(
    folder: Path,
    model: onnx.ModelProto,
    built: BuiltModel,
    *,
    agent: str,
    actions: Sequence[str],
    lineage: Mapping[str, str],
) -> None:
    assert built.columns is not None  # a student has columns
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    code = copy_code(folder)
    entries = {"agent": agent, "actions": list(actions), "columns": list(built.columns), "lineage": dict(lineage)}
    method = [step.model_dump(mode="json") for step in built.recipe]
    entries |= {"variant": recipe_name(built.recipe), "method": method, "input": INPUT_NAME}
    write_manifest(folder, entries, built, ("model.onnx", *code))
