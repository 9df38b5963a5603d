"""All variants of one student: each a folder that runs without this project and without torch."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
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
from stillhouse.compress.export import INPUT, check_rows, export_onnx, probabilities, run_onnx
from stillhouse.compress.processor import processor
from stillhouse.compress.prune import prune_hidden_units
from stillhouse.compress.quantize import quantize_dynamic_int8, quantize_static_int8
from stillhouse.config import Compression, DynamicInt8, Fp32, Prune, StaticInt8, variant_name
from stillhouse.errors import ExportError
from stillhouse.records import Record
from stillhouse.variant import width

__all__ = ["Agreement", "VariantFile", "make_variants"]

Array = np.ndarray[Any, Any]

_FORMAT = 1
_UNFINISHED = ".unfinished"  # what a killed process leaves; the next one clears it
_FILES = ("model.onnx", "variant.py", "manifest.json")


class Agreement(Record):
    """How far a variant's probabilities lie from those of the torch student it was made from."""

    rows: int = Field(ge=1, description="calibration rows compared")
    mean: float = Field(ge=0.0, le=1.0, description="mean |p_variant − p_student| over rows and actions")
    max: float = Field(ge=0.0, le=1.0, description="largest |p_variant − p_student|")


class VariantFile(Record):
    """One finished variant on disk."""

    name: str
    method: str = Field(description="of the compression: fp32, int8_dynamic, int8_static or prune")
    folder: str = Field(description="holds model.onnx, manifest.json and variant.py")
    bytes: int = Field(ge=1, description="of these three files, on disk")
    agreement: Agreement


def make_variants(
    student: nn.Module,
    compressions: Sequence[Compression],
    *,
    agent: str,
    actions: Sequence[str],
    columns: list[dict[str, Any]],
    calibration: Array,
    recover: Callable[[nn.Module, int], nn.Module],
    folder: Path,
    lineage: Mapping[str, str],
) -> tuple[VariantFile, ...]:
    """Make one variant of the student per compression, each in ``folder/<variant name>/``.

    The same arguments give the same bytes. A variant appears under its name only when it is complete; one that
    is already there stays if it is the same and is replaced if not. One process at a time works in ``folder``.
    How much a variant differs from the student is recorded, not judged: that is the gate's work.

    :param student: torch module, float32 ``[n, D]`` to logits ``[n, K]``.
    :param actions: the K actions' names.
    :param columns: the input columns of D values, as :func:`stillhouse.variant.encode` reads them.
    :param calibration: float32 ``[n, D]``, encoded training rows, in order of time.
    :param recover: ``(pruned student, epochs)`` to the same student after a short distillation; not called for
        0 epochs.
    :param lineage: where the student comes from; goes into the manifest as it is.
    :raises ExportError: if the student cannot be exported or pruned, does not fit ``actions`` and ``columns``, or
        a variant gives probabilities that are not finite.
    """
    reference = _reference(student, actions, columns, calibration)
    described = {"agent": agent, "actions": list(actions), "columns": columns, "lineage": dict(lineage)}
    workplace = _empty(folder / _UNFINISHED)
    try:
        exported = workplace / "student.onnx"
        export_onnx(student, calibration, exported)
        work = _Work(student, exported, calibration, reference, recover)
        return tuple(_make(config, work, described, workplace, folder) for config in compressions)
    finally:
        shutil.rmtree(workplace)


# --------------------------------------------------------------------------- one method each


@dataclass(frozen=True)
class _Work:
    """What every method starts from."""

    student: nn.Module
    exported: Path
    calibration: Array
    reference: Array
    recover: Callable[[nn.Module, int], nn.Module]


@singledispatch
def _compress(config: object, work: _Work, target: Path) -> None:
    """Write the ONNX model that ``config`` asks for; the config's type is the method."""
    raise TypeError(f"no compression method for {type(config).__name__}")


@_compress.register
def _(config: Fp32, work: _Work, target: Path) -> None:
    shutil.copyfile(work.exported, target)


@_compress.register
def _(config: DynamicInt8, work: _Work, target: Path) -> None:
    quantize_dynamic_int8(work.exported, target, config)


@_compress.register
def _(config: StaticInt8, work: _Work, target: Path) -> None:
    quantize_static_int8(work.exported, target, config, work.calibration)


@_compress.register
def _(config: Prune, work: _Work, target: Path) -> None:
    pruned = prune_hidden_units(work.student, config.ratio)
    if config.recover_epochs:
        pruned = work.recover(pruned, config.recover_epochs)
    export_onnx(pruned, work.calibration, target)


# --------------------------------------------------------------------------- one folder


def _make(config: Compression, work: _Work, described: dict[str, Any], workplace: Path, folder: Path) -> VariantFile:
    """Build one variant aside, then put it in its place."""
    name = variant_name(config)
    built = _empty(workplace / name)
    _compress(config, work, built / "model.onnx")
    agreement = _agreement(built / "model.onnx", work, name)
    shutil.copyfile(stillhouse.variant.__file__, built / "variant.py")
    _write_manifest(built, described | {"variant": name, "method": config.model_dump(mode="json")}, agreement)
    place = folder / name
    _put(built, place)
    size = sum((place / file).stat().st_size for file in _FILES)
    return VariantFile(name=name, method=config.method, folder=str(place), bytes=size, agreement=agreement)


def _reference(student: nn.Module, actions: Sequence[str], columns: Sequence[Any], calibration: Array) -> Array:
    """The torch student's probabilities on the calibration rows, after checking that everything fits."""
    check_rows(calibration)
    if calibration.shape[1] != width(columns):
        raise ExportError(
            f"the calibration rows have {calibration.shape[1]} values, but the columns make {width(columns)}"
        )
    reference = probabilities(student, calibration)
    if reference.shape[1] != len(actions):
        raise ExportError(f"the student has {reference.shape[1]} logits, but there are {len(actions)} actions")
    return reference


def _agreement(model: Path, work: _Work, name: str) -> Agreement:
    found = run_onnx(model.read_bytes(), work.calibration)
    strange = int((~np.isfinite(found).all(axis=1)).sum())
    if strange:
        raise ExportError(f"variant {name} gives probabilities that are not finite on {strange} of {len(found)} rows")
    difference = np.abs(found.astype(np.float64) - work.reference)
    return Agreement(rows=len(found), mean=float(difference.mean()), max=float(difference.max()))


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
