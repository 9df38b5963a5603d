"""From an agent file and its training rows to an untrained student, and to disk and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from stillhouse import config as settings
from stillhouse.config import AgentConfig, AnyEncoder, CategoryColumn
from stillhouse.distill.students import own
from stillhouse.distill.students.columns import quantile_edges
from stillhouse.distill.students.encoders import TextEncoder
from stillhouse.distill.students.initial import begin_like
from stillhouse.distill.students.own import OwnStudent
from stillhouse.distill.students.tabular import TabularStudent
from stillhouse.distill.students.text import TextStudent
from stillhouse.distill.vocabulary import cut_vocabulary, grow_vocabulary
from stillhouse.errors import ConfigError, PartError
from stillhouse.parts import TextInitial
from stillhouse.variant import width

__all__ = ["AnyStudent", "Blocks", "Student", "blocks", "columns_of", "load", "new_student", "save"]

Student = TabularStudent | TextStudent
"""Ours, whose parts are known: they can grow and be updated."""

AnyStudent = Student | OwnStudent


class Blocks(NamedTuple):
    """How many values of an encoded row are numbers, category codes and token ids; they come in this order."""

    numbers: int
    categories: int
    tokens: int


def blocks(columns: Sequence[Mapping[str, Any]]) -> Blocks:
    """The blocks of rows that :func:`stillhouse.variant.encode` makes with these columns."""
    kinds = ("number", "category", "text")
    return Blocks(*(width([column for column in columns if column["type"] == kind]) for kind in kinds))


def columns_of(config: AgentConfig, rows: pd.DataFrame, initial: TextInitial | None = None) -> list[dict[str, Any]]:
    """The student's input as :func:`stillhouse.variant.encode` wants it: numbers, categories, then texts.

    A category's values are those of the contract, or, where it allows any, those that ``rows`` have. A text's tokens
    are grown from ``rows``, or cut from the vocabulary of ``initial`` by what is frequent in them. The same rows give
    the same columns.

    :raises ConfigError: if the student is to begin like a teacher, and there is no ``initial``.
    """
    columns: list[dict[str, Any]] = [{"name": name, "type": "number"} for name in config.observations.numbers]
    for name in config.observations.categories:
        column = config.observations.columns[name]
        assert isinstance(column, CategoryColumn)  # `categories` selects by type
        values = column.values if column.values is not None else sorted(rows[name].dropna().unique())
        columns.append({"name": name, "type": "category", "values": list(values)})
    student = config.student
    if isinstance(student, settings.TextStudent):
        _require(initial, config)
        for name in config.observations.texts:
            texts, size = rows[name].dropna().astype(str), student.vocabulary
            tokens = grow_vocabulary(texts, size) if initial is None else cut_vocabulary(texts, size, initial.tokens)
            columns.append({"name": name, "type": "text", "tokens": tokens, "length": student.length})
    return columns


def new_student(
    config: AgentConfig, columns: list[dict[str, Any]], x: np.ndarray[Any, Any], initial: TextInitial | None = None
) -> AnyStudent:
    """An untrained student for encoded training rows ``x``, the same for the same seed.

    :param initial: a teacher's text encoder to begin like; used where ``student.initialise`` is ``teacher``.
    :raises ConfigError: if the student is to begin like a teacher, and there is no ``initial``.
    :raises PartError: if a student of the user's own cannot be made.
    """
    student, numbers = config.student, blocks(columns).numbers
    if isinstance(student, settings.ModuleStudent):
        with torch.random.fork_rng():
            torch.manual_seed(config.distillation.seed)
            return own.make(config, columns)
    edges = quantile_edges(x[:, :numbers], student.bins)
    cardinalities = [len(column["values"]) for column in columns if column["type"] == "category"]
    common: dict[str, Any] = {
        "actions": len(config.actions), "widths": student.widths, "embedding": student.embedding,
        "dropout": student.dropout,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(config.distillation.seed)
        if not isinstance(student, settings.TextStudent):
            return TabularStudent(edges, cardinalities, **common)
        texts = [column for column in columns if column["type"] == "text"]
        sizes = [(len(column["tokens"]), column["length"]) for column in texts]
        made = TextStudent(edges, cardinalities, sizes, student.encoder, **common)
        if (found := _require(initial, config)) is not None:
            for column, encoder in zip(texts, made.encoders, strict=True):
                assert isinstance(encoder, TextEncoder)
                begin_like(encoder, column["tokens"], found)
        return made


def save(student: AnyStudent, folder: Path) -> None:
    """Write ``student.safetensors`` and ``student.json`` (no pickle)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in student.state_dict().items()},
              folder / "student.safetensors")  # fmt: skip
    (folder / "student.json").write_text(json.dumps(student.spec, indent=1), encoding="utf-8")


def load(folder: Path, config: AgentConfig | None = None) -> AnyStudent:
    """Read what :func:`save` wrote, with ``columns.json`` beside it for a student of the user's own.

    :param config: of the agent, whose file alone says what Python makes such a student.
    :raises PartError: if it is of the user's own, and the agent file describes another student now.
    """
    spec = json.loads((folder / "student.json").read_text(encoding="utf-8"))
    student = _own(folder, spec, config) if spec["kind"] == "module" else _ours(spec)
    student.load_state_dict(load_file(folder / "student.safetensors"))
    return student.eval()


def _ours(spec: dict[str, Any]) -> Student:
    kind, edges = spec.pop("kind"), torch.zeros(spec.pop("numbers"), spec.pop("bins") + 1)
    if kind == "text":
        encoder = TypeAdapter[AnyEncoder](AnyEncoder).validate_python(spec.pop("encoder"))
        return TextStudent(edges, encoder=encoder, **spec)
    return TabularStudent(edges, **spec)


def _own(folder: Path, spec: dict[str, Any], config: AgentConfig | None) -> OwnStudent:
    if config is None:
        raise PartError(f"{folder} holds a student of the user's own, which only its agent file can make")
    described = config.student
    if not isinstance(described, settings.ModuleStudent) or (described.target, described.settings) != (
        spec["target"], spec["settings"]
    ):  # fmt: skip
        raise PartError(
            f"{config.file}: student: describes another one than was stored, {spec['target']} with "
            f"{spec['settings']}: refresh with mode=redistil, or restore the agent file"
        )
    return own.make(config, json.loads((folder / "columns.json").read_text(encoding="utf-8")))


def _require(initial: TextInitial | None, config: AgentConfig) -> TextInitial | None:
    """``initial`` where the student is to begin like a teacher, else None."""
    assert isinstance(config.student, settings.TextStudent)
    if config.student.initialise == "none":
        return None
    if initial is None:
        raise ConfigError(
            f"{config.file}: student.initialise: is 'teacher', and none of the teachers offers its text "
            f"encoder: give one a method `text_encoder` (see stillhouse.parts.TextInitial), or write 'none'"
        )
    return initial
