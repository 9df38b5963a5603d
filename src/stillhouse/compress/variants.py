"""All variants of one student: each a folder that runs without this project and without torch."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from pydantic import Field
from torch import nn

import stillhouse
import stillhouse.variant
from stillhouse.compress.build import Agreement, Built, build
from stillhouse.compress.export import INPUT, export_onnx, run_torch, slim
from stillhouse.compress.processor import processor
from stillhouse.compress.subject import Array, Columns, Feed, Form, Subject
from stillhouse.config import Compression, Recipe, recipe_name
from stillhouse.errors import ExportError
from stillhouse.records import Record
from stillhouse.variant import width

__all__ = ["Pack", "VariantFile", "make_variants", "student_subject", "variant_pack"]

_FORMAT = 2
_UNFINISHED = ".unfinished"  # what a killed process leaves; the next one clears it
_FILES = ("model.onnx", "variant.py", "manifest.json")


class VariantFile(Record):
    """One finished variant on disk."""

    name: str
    folder: str = Field(description="holds model.onnx, manifest.json and variant.py")
    bytes: int = Field(ge=1, description="of these three files, on disk")
    agreement: Agreement


def student_subject(
    student: nn.Module,
    columns: Columns,
    actions: Sequence[str],
    *,
    calibration: Callable[[Columns], Array],
    judged: Callable[[Columns], Array],
    quality: Callable[[Array], float],
    recover: Callable[[Form, int], Form] | None = None,
    source: str = "",
) -> Subject:
    """A student as the subject of compression; see :class:`Subject` for what the arguments are.

    :param student: encoded rows ``[n, D]`` to logits ``[n, K]``.
    :param calibration: columns to float32 ``[n, D]``, n ≥ 1, in order of time; ``judged`` alike.
    :raises ExportError: if the student cannot be exported, or does not fit ``actions`` and ``columns``.
    """
    rows = calibration(columns)
    if rows.ndim == 2 and rows.shape[1] != width(columns):
        raise ExportError(f"the calibration rows have {rows.shape[1]} values, but the columns make {width(columns)}")
    answers = run_torch(student, {INPUT: rows}) if len(rows) else np.empty((0, len(actions)))
    if answers.shape[1] != len(actions):
        raise ExportError(f"the student has {answers.shape[1]} logits, but there are {len(actions)} actions")

    def feed(rows: Callable[[Columns], Array]) -> Callable[[Columns | None], Feed]:
        return lambda given: {INPUT: rows(columns if given is None else given)}

    return Subject(
        model=export_onnx(student, {INPUT: rows}), calibration=feed(calibration), judged=feed(judged), quality=quality,
        form=Form(student, columns), recover=recover, source=source,
    )  # fmt: skip


Pack = Callable[[Path, onnx.ModelProto, Built], None]
"""Writes an artifact into an empty folder: the slim graph, and what its kind of artifact has beside it."""


def make_variants(subject: Subject, settings: Compression, pack: Pack, folder: Path) -> tuple[VariantFile, ...]:
    """Make one variant of the subject per recipe, each in ``folder/<variant name>/``.

    The same arguments give the same bytes. A variant appears under its name only when it is complete; one that
    is already there stays if it is the same and is replaced if not. One process at a time works in ``folder``.

    :raises ExportError: if a recipe does not apply, or a variant gives probabilities that are not finite.
    """
    workplace = _empty(folder / _UNFINISHED)
    try:
        return tuple(_make(subject, recipe, settings.tolerance, pack, workplace, folder) for recipe in settings.recipes)
    finally:
        shutil.rmtree(workplace)


def variant_pack(agent: str, actions: Sequence[str], lineage: Mapping[str, str]) -> Pack:
    """Packs variants of an agent: ``model.onnx``, ``variant.py``, ``manifest.json``.

    :param lineage: where the student comes from; goes into the manifest as it is.
    """

    def pack(folder: Path, model: onnx.ModelProto, built: Built) -> None:
        assert built.columns is not None  # a student has them
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        shutil.copyfile(stillhouse.variant.__file__, folder / "variant.py")
        described = {"agent": agent, "actions": list(actions), "columns": list(built.columns), "lineage": dict(lineage)}
        method = [step.model_dump(mode="json") for step in built.recipe]
        described |= {"variant": recipe_name(built.recipe), "method": method}
        _write_manifest(folder, described, built.agreement)

    return pack


# --------------------------------------------------------------------------- one folder


def _make(subject: Subject, recipe: Recipe, tolerance: float, pack: Pack, workplace: Path, folder: Path) -> VariantFile:
    """Build one variant aside, then put it in its place."""
    name = recipe_name(recipe)
    target = _empty(workplace / name)
    built = build(subject, recipe, tolerance)
    pack(target, slim(built.model), built)
    place = folder / name
    _put(target, place)
    size = sum(file.stat().st_size for file in place.iterdir())
    return VariantFile(name=name, folder=str(place), bytes=size, agreement=built.agreement)


def _write_manifest(built: Path, described: Mapping[str, Any], agreement: Agreement) -> None:
    manifest = {
        "format": _FORMAT,
        **described,
        "input": INPUT,
        "sha256": {name: _sha256(built / name) for name in ("model.onnx", "variant.py")},
        "agreement": agreement.model_dump(),
        "cpu": processor().model_dump(mode="json"),
        "versions": {
            "onnxruntime": onnxruntime.__version__,
            "onnx": onnx.__version__,
            "torch": str(torch.__version__),
            "stillhouse": stillhouse.__version__,
        },
    }
    text = json.dumps(manifest, ensure_ascii=False, allow_nan=False)
    (built / "manifest.json").write_text(text + "\n", encoding="utf-8")


def _put(built: Path, place: Path) -> None:
    """Move a complete variant to its place, by renaming: nobody ever sees half of one."""
    if place.exists():
        if _same(built, place):
            return
        place.rename(built.with_name(f"{built.name}.old"))
    built.rename(place)


def _same(one: Path, other: Path) -> bool:
    return all((other / name).is_file() and (one / name).read_bytes() == (other / name).read_bytes() for name in _FILES)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _empty(folder: Path) -> Path:
    """The folder, new and empty."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder
