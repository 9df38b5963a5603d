"""A sentence encoder with a linear head that is fitted here: on outcomes, or once on a file of examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, SentenceEncoderTeacher
from stillhouse.errors import PartError, SchemaError
from stillhouse.files import file_digest
from stillhouse.knowledge.log_files import LogFile
from stillhouse.parts import Teacher, is_rehearsal
from stillhouse.records import short_id
from stillhouse.teachers.answers import Array, wrap_predict
from stillhouse.teachers.encoders import SentenceEncoder, package_folder
from stillhouse.teachers.heads import FoldedHead, Head, fit_folded_head
from stillhouse.teachers.kinds import (
    REFRESH_ADVICE,
    Member,
    MemberContext,
    answer_version,
    describe,
    new_teacher,
    open_member,
    require_version,
)
from stillhouse.teachers.pretrained import read_texts

__all__ = ["EncoderTeacher", "open_encoder", "read_examples"]

_DESCRIPTION, _HEADS = "head.json", "heads.safetensors"
_MAX_EXAMPLES = 200_000
_ROWS_PER_CHUNK = 50_000
_KEY_BYTES = 16


@new_teacher.register
def _(section: SentenceEncoderTeacher, where: str, config: AgentConfig) -> Teacher:
    teacher: Any = EncoderTeacher(section, config.actions, where)
    return teacher  # type: ignore[no-any-return]


@describe.register
def _(section: SentenceEncoderTeacher, context: MemberContext) -> dict[str, Any]:
    teacher = EncoderTeacher(section, context.config.actions, context.where)
    texts, labels = read_examples(section, context.config.actions, context.where)
    teacher.fit_texts(texts, labels)
    folder = context.folder / context.leaf.name
    folder.mkdir(parents=True)
    teacher.save(folder)
    return {
        "folder": context.leaf.name,
        "bytes_elsewhere": teacher.bytes_elsewhere,
        "version": _examples_version(section, context, teacher.encoder),
    }


@open_member.register
def _(section: SentenceEncoderTeacher, context: MemberContext, entry: dict[str, Any]) -> Member:
    teacher = EncoderTeacher(section, context.config.actions, context.where)
    if not section.is_fitted:
        require_version(context, entry, _examples_version(section, context, teacher.encoder))
    teacher.read(context.folder / entry["folder"])
    leaf = context.leaf
    return Member(
        leaf.name,
        leaf.share,
        wrap_predict(leaf.name, context.config.actions, teacher.predict_proba, timeout=section.call_timeout),
        entry.get("version"),
        user_object=(lambda: teacher.encoder) if teacher.encoder.has_text_encoder else None,
    )


class EncoderTeacher:
    """A :class:`stillhouse.parts.Teacher` whose head is fitted on labels; its encoder stays as it is.

    A text on which the head was fitted is answered by a head that has not seen it.

    :param where: the teacher as an error names it.
    :raises PartError: if there is no such encoder.
    """

    def __init__(self, section: SentenceEncoderTeacher, actions: Sequence[str], where: str) -> None:
        self.section, self.actions, self.where = section, tuple(actions), where
        self.encoder = open_encoder(section, where)
        self._heads: list[Head] = []  # the head, then those of the folds
        self._fold_of_text: dict[str, int] = {}

    @property
    def bytes_elsewhere(self) -> int:
        """Size of the encoder's files, which stay where they are."""
        return self.encoder.bytes

    def fit(self, rows: pd.DataFrame, labels: np.ndarray[Any, Any]) -> Self:
        """Fit the head on rows ``[n]`` and action indices ``[n]``."""
        return self.fit_texts(self._texts(rows), np.asarray(labels, dtype=np.int64))

    def fit_texts(self, texts: Sequence[str], labels: np.ndarray[Any, np.dtype[np.int64]]) -> Self:
        """Fit the head on texts ``[n]`` and action indices ``[n]``.

        :raises PartError: if there is no text.
        """
        if not len(texts):
            raise PartError(f"{self.where}: there is no labelled text to fit its head on")
        if is_rehearsal():
            texts, labels = _limit_per_action(texts, labels, 2 * self.section.folds)
        keys = [_text_key(text) for text in texts]
        fitted = fit_folded_head(
            self.encoder.embed(texts), labels, len(self.actions), self.section.strength, self.section.folds, keys
        )
        self._remember(fitted, keys)
        return self

    def predict_proba(self, rows: pd.DataFrame) -> Array:
        """The probability of each action, float64 ``[n, K]``."""
        texts = self._texts(rows)
        if not texts:
            return np.empty((0, len(self.actions)))
        embeddings = self.encoder.embed(texts)
        probs = self._heads[0].probs(embeddings)
        folds = np.array([self._fold_of_text.get(_text_key(text), -1) for text in texts])
        for fold in np.unique(folds[folds >= 0]):
            seen = folds == fold
            probs[seen] = self._heads[1 + fold].probs(embeddings[seen])
        return probs

    def save(self, folder: Path) -> None:
        """Write ``head.json`` (what the head belongs to) and ``heads.safetensors``; the encoder stays where it is."""
        from safetensors.numpy import save_file

        keys = list(self._fold_of_text)
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "weights": np.stack([head.weights for head in self._heads]),
            "bias": np.stack([head.bias for head in self._heads]),
            "texts": np.frombuffer(bytes.fromhex("".join(keys)), dtype=np.uint8),
            "folds": np.array([self._fold_of_text[key] for key in keys], dtype=np.int64),
        }
        save_file(arrays, folder / _HEADS)
        description = self._identity() | {"temperature": self._heads[0].temperature}
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")

    def read(self, folder: Path) -> Self:
        """Read what :meth:`save` wrote.

        :raises PartError: if it belongs to another encoder, other actions or another section.
        """
        from safetensors.numpy import load_file

        description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        temperature = description.pop("temperature")
        if different := [key for key, value in self._identity().items() if description.get(key) != value]:
            raise PartError(
                f"{self.where}: another {different[0]} than when its head was fitted, so the head does not fit. "
                f"{REFRESH_ADVICE}"
            )
        stored = load_file(folder / _HEADS)
        self._heads = [
            Head(weights, bias, temperature) for weights, bias in zip(stored["weights"], stored["bias"], strict=True)
        ]
        keys, size = stored["texts"].tobytes().hex(), 2 * _KEY_BYTES
        self._fold_of_text = {
            keys[size * number : size * (number + 1)]: int(fold) for number, fold in enumerate(stored["folds"])
        }
        return self

    def _identity(self) -> dict[str, Any]:
        """What the head belongs to."""
        section = self.section.model_dump_json(exclude=set(self.section.non_identity_fields))
        return {"encoder": self.encoder.version, "actions": list(self.actions), "section": short_id(section)}

    def _remember(self, fitted: FoldedHead, keys: Sequence[str]) -> None:
        self._heads = [fitted.head, *fitted.folds]
        self._fold_of_text = dict(zip(keys, fitted.fold_of_row.tolist(), strict=True))

    def _texts(self, rows: pd.DataFrame) -> list[str]:
        return read_texts(self.section.column, self.section.template, self.actions, rows)


def open_encoder(section: SentenceEncoderTeacher, where: str) -> SentenceEncoder:
    """The encoder that the section names; one process reads its files once.

    :raises PartError: if there is none.
    """
    if section.package is not None:
        key, folder = f"{where}.package", package_folder(section.package, f"{where}.package")
    else:
        key, folder = f"{where}.folder", Path(section.folder or "")
    encoder = SentenceEncoder(folder, key, section.max_tokens, section.batch_size, section.threads)
    return _shared(encoder.version, folder.resolve(), key, section.max_tokens, section.batch_size, section.threads)


@lru_cache(maxsize=2)
def _shared(version: str, *arguments: Any) -> SentenceEncoder:
    """The encoder of these files: cross-fitted teachers share one in memory."""
    encoder = SentenceEncoder(*arguments)
    encoder.version = version  # its files need not be read again
    return encoder


def read_examples(
    section: SentenceEncoderTeacher, actions: Sequence[str], where: str
) -> tuple[list[str], np.ndarray[Any, np.dtype[np.int64]]]:
    """The labelled texts of ``examples``, and their action indices.

    :raises PartError: if the file cannot be read, lacks a column, or names an action that the agent does not have.
    """
    where, path, index = f"{where}.examples", Path(section.examples or ""), {name: i for i, name in enumerate(actions)}
    texts, labels = list[str](), list[int]()
    try:
        file = LogFile(path)
        if missing := file.missing_columns(["text", "action"]):
            raise PartError(f"{where}: {path} has no column {missing[0]!r}: it needs `text` and `action`")
        for chunk in file.chunks(["text", "action"], _ROWS_PER_CHUNK):
            if chunk.bad:
                raise PartError(f"{where}: {path}:{chunk.bad[0][0]}: {chunk.bad[0][1]}")
            for line, text, action in zip(chunk.lines, chunk.rows["text"], chunk.rows["action"], strict=True):
                has_text = isinstance(text, str) and bool(text.strip())
                if not has_text or action not in index:
                    what = f"names no action of the agent: {action!r}" if has_text else "has no text"
                    raise PartError(f"{where}: {path}:{line}: {what}")
                texts.append(text)
                labels.append(index[action])
            if len(texts) > _MAX_EXAMPLES:
                raise PartError(f"{where}: {path} has more than {_MAX_EXAMPLES:,} texts: take a sample of it")
    except SchemaError as error:
        raise PartError(f"{where}: {error}") from error
    return texts, np.array(labels, dtype=np.int64)


def _text_key(text: str) -> str:
    """Equal for texts that differ in case and blanks only: 16 bytes in hexadecimal."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=_KEY_BYTES).hexdigest()


def _limit_per_action(
    texts: Sequence[str], labels: np.ndarray[Any, np.dtype[np.int64]], count: int
) -> tuple[list[str], np.ndarray[Any, np.dtype[np.int64]]]:
    """The first ``count`` texts of each action: enough to try the teacher, and encoded in seconds."""
    number = pd.Series(labels).groupby(labels).cumcount().to_numpy()
    chosen = np.flatnonzero(number < count)
    return [texts[index] for index in chosen.tolist()], labels[chosen]


def _examples_version(section: SentenceEncoderTeacher, context: MemberContext, encoder: SentenceEncoder) -> str:
    path = Path(section.examples or "")
    try:
        return answer_version(context, encoder.version, file_digest(path))
    except OSError as error:
        raise PartError(f"{context.where}.examples: {path} cannot be read ({error.strerror})") from error
