"""A student as the subject of compression, and its variants: folders that run without stillhouse and torch."""

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
from stillhouse.compress.build import Built
from stillhouse.compress.export import INPUT, export_onnx, run_torch
from stillhouse.compress.manifest import write_manifest
from stillhouse.compress.quantize import evenly_spaced
from stillhouse.compress.subject import Array, Columns, Feed, Form, Subject
from stillhouse.compress.workshop import Pack
from stillhouse.config import recipe_name
from stillhouse.errors import ExportError
from stillhouse.variant import width

__all__ = ["copy_code", "graph_subject", "student_subject", "variant_pack"]

_CALIBRATION_ROWS = 8192


def student_subject(
    student: nn.Module,
    columns: Columns,
    actions: Sequence[str],
    *,
    calibration: Callable[[Columns], Array],
    judged: Callable[[Columns], Array],
    quality: Callable[[Array], float],
    slices: Callable[[Array], Mapping[str, float]] = lambda said: {},
    recover: Callable[[Form, int], Form] | None = None,
    measure: str = "",
    source: str = "",
) -> Subject:
    """A student as the subject of compression; see :class:`Subject` for what the arguments are.

    :param student: encoded rows ``[n, D]`` to logits ``[n, K]``.
    :param calibration: columns to float32 ``[n, D]``, n ≥ 1, in order of time; ``judged`` alike. Of very many
        calibration rows 8,192 are taken, half of them the newest: they say where ranges lie and how far two graphs
        differ.
    :raises ExportError: if the student cannot be exported, or does not fit ``actions`` and ``columns``.
    """
    rows = calibration(columns)
    if rows.ndim != 2 or rows.dtype != np.float32 or not len(rows):
        raise ExportError(f"needs float32 rows [n, D] with n ≥ 1, got {rows.dtype} {list(rows.shape)}")
    if rows.shape[1] != width(columns):
        raise ExportError(f"the calibration rows have {rows.shape[1]} values, but the columns make {width(columns)}")
    answers = run_torch(student, {INPUT: rows[:1]})
    if answers.shape[1] != len(actions):
        raise ExportError(f"the student has {answers.shape[1]} logits, but there are {len(actions)} actions")

    def feed(rows: Callable[[Columns], Array], most: int | None = None) -> Callable[[Columns | None], Feed]:
        encoded: dict[str, Feed] = {}  # by columns, of which a search has a handful

        def fed(given: Columns | None) -> Feed:
            asked = columns if given is None else given
            key = json.dumps(list(asked))
            if key not in encoded:
                whole = {INPUT: rows(asked)}
                encoded[key] = whole if most is None else _thinned(whole, most)
            return encoded[key]

        return fed

    calibrated = feed(calibration, _CALIBRATION_ROWS)
    return Subject(
        model=export_onnx(student, calibrated(columns)),
        calibration=calibrated,
        judged=feed(judged),
        quality=quality,
        slices=slices,
        measure=measure,
        form=Form(student, columns),
        recover=recover,
        source=source,
    )


def _thinned(feed: Feed, most: int) -> Feed:
    """At most ``most`` rows in order of time: the newest half of them whole, the rest evenly from before."""
    older = {name: array[: -(most // 2)] for name, array in feed.items()}
    spread = evenly_spaced(older, most - most // 2)
    return {name: np.concatenate([spread[name], array[-(most // 2) :]]) for name, array in feed.items()}


def graph_subject(
    model: onnx.ModelProto,
    columns: Columns,
    *,
    calibration: Array,
    judged: Array,
    quality: Callable[[Array], float],
    source: str = "",
) -> Subject:
    """A form that is an ONNX graph already as the subject of compression: only its number format can change.

    :param calibration: rows encoded with ``columns``, float32 ``[n, D]``; ``judged`` alike.
    """
    return Subject(
        model=model,
        calibration=lambda given: {INPUT: calibration},
        judged=lambda given: {INPUT: judged},
        quality=quality,
        source=source,
        kept_columns=columns,
    )


def variant_pack(agent: str, actions: Sequence[str], lineage: Mapping[str, str]) -> Pack:
    """Packs variants of an agent: ``model.onnx``, ``variant.py``, ``values.py``, ``manifest.json``.

    :param lineage: where the student comes from; goes into the manifest as it is.
    """

    return functools.partial(_pack, agent=agent, actions=tuple(actions), lineage=dict(lineage))


def copy_code(folder: Path) -> tuple[str, ...]:
    """Copy the Python files that every variant runs with into ``folder``, and return their names.

    This is the one place that lists them; the manifest has a checksum of each.
    """
    names = ("variant.py", "values.py")
    for name in names:
        shutil.copyfile(Path(stillhouse.variant.__file__).with_name(name), folder / name)
    return names


def _pack(
    folder: Path,
    model: onnx.ModelProto,
    built: Built,
    *,
    agent: str,
    actions: Sequence[str],
    lineage: Mapping[str, str],
) -> None:
    assert built.columns is not None  # a student has them
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    code = copy_code(folder)
    described = {"agent": agent, "actions": list(actions), "columns": list(built.columns), "lineage": dict(lineage)}
    method = [step.model_dump(mode="json") for step in built.recipe]
    described |= {"variant": recipe_name(built.recipe), "method": method, "input": INPUT}
    write_manifest(folder, described, built, ("model.onnx", *code))
