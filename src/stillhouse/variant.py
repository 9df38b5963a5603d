"""A deployed variant: raw rows in, one action per row out. Needs numpy, pandas and onnxruntime, nothing else.

This file is copied as it is into every variant's folder, beside ``model.onnx`` and ``manifest.json``, so that
the folder runs on a device that knows neither stillhouse nor torch::

    variant = Variant("path/of/folder")
    variant.predict(rows)          # DataFrame: action, p_<action> for each of the K actions

It must therefore import nothing of stillhouse.
"""

from __future__ import annotations

import hashlib
import json
import platform
import string
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd


def _beside(name: str) -> Any:
    """The module ``name`` in this file's folder, from its source: byte code there is not read."""
    path = Path(__file__).with_name(f"{name}.py")
    module = ModuleType(name)
    module.__file__ = str(path)
    exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    return module


if TYPE_CHECKING or __package__:
    from . import values
else:  # loaded by its path, on a device that does not know stillhouse
    values = _beside("values")

__all__ = [
    "PADDING",
    "UNKNOWN",
    "Encoder",
    "InputError",
    "Variant",
    "WordPiece",
    "basic_words",
    "encode",
    "parse_cpuinfo",
    "processor",
    "width",
]

PADDING, UNKNOWN = 0, 1  # token ids in every vocabulary
_LONGEST_WORD = 100  # characters
_KEPT_WORDS = 50_000


class InputError(ValueError):
    """The rows do not have the columns or types that the model needs."""


def encode(rows: pd.DataFrame, columns: Sequence[Mapping[str, Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Raw rows as the float32 matrix ``[n, F + C + ΣL]`` that a student reads; see :class:`Encoder`."""
    return Encoder(columns)(rows)


def width(columns: Sequence[Mapping[str, Any]]) -> int:
    """How many values an encoded row has: one for each number and category, ``length`` for each text."""
    return sum(int(column["length"]) if column["type"] == "text" else 1 for column in columns)


class Encoder:
    """Raw rows to the float32 matrix ``[n, F + C + ΣL]`` that a student reads.

    First the F numbers in their own units (missing: NaN), then the C categories as codes ``1…V`` by their
    position in ``values``, both read as text; 0 stands for missing and for values that the student never saw.
    Then for each text L token ids, cut or padded with 0; 1 is the unknown token, and a missing text is an empty
    one. As float32 an id is exact up to 2^24. Extra columns are ignored.

    :param columns: ``{"name", "type": "number" | "category" | "text", "values"?, "tokens"?, "length"?}``, numbers
        before categories before texts; ``tokens`` is the vocabulary of :class:`WordPiece`, ``length`` is L.
    """

    def __init__(self, columns: Sequence[Mapping[str, Any]]) -> None:
        self.columns = columns
        self._readers = [_reader(column) for column in columns]
        self._width = width(columns)

    def __call__(self, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float32]]:
        """:raises InputError: naming the columns that are missing, not numeric, or infinite."""
        missing = [column["name"] for column in self.columns if column["name"] not in rows.columns]
        if missing:
            raise InputError(f"missing columns {missing}; the rows have {list(rows.columns)}")
        matrix = np.empty((len(rows), self._width), dtype=np.float32)
        end = 0
        for column, read in zip(self.columns, self._readers, strict=True):
            begin, end = end, end + width([column])
            matrix[:, begin:end] = read(rows[column["name"]])
            if column["type"] == "number" and np.isinf(matrix[:, begin]).any():
                raise InputError(f"column {column['name']!r} holds infinite values; missing is NaN")
        return matrix


def _reader(column: Mapping[str, Any]) -> Callable[[pd.Series[Any]], np.ndarray[Any, Any]]:
    """From a column's values to its part of the matrix, ``[n, 1]`` or ``[n, L]``."""
    if column["type"] == "number":
        return _numbers
    if column["type"] == "category":
        known = pd.Index(column["values"])
        return lambda values: _codes(values, known)
    pieces, length = WordPiece(column["tokens"]), int(column["length"])
    return lambda values: pieces.matrix(_texts(values), length)


def _numbers(values: pd.Series[Any]) -> np.ndarray[Any, Any]:
    if values.dtype.kind in "mMc":
        raise InputError(f"column {values.name!r} must be numeric, not {values.dtype}")
    try:
        found: np.ndarray[Any, Any] = pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise InputError(f"column {values.name!r} must be numeric: {error}") from error
    return found[:, None]


def _codes(values: pd.Series[Any], known: pd.Index[Any]) -> np.ndarray[Any, Any]:
    if not pd.api.types.is_string_dtype(values):
        values = values.astype("string")
    codes: np.ndarray[Any, Any] = known.get_indexer(pd.Index(values.astype("object"))) + 1
    return codes[:, None]


def _texts(values: pd.Series[Any]) -> list[str]:
    return ["" if absent else str(value) for value, absent in zip(values, values.isna(), strict=True)]


class WordPiece:
    """Texts to token ids: BERT's basic words, each cut greedily into the longest tokens that a vocabulary has.

    Control characters go, what is white splits, each punctuation mark and each Chinese character is a word of its
    own, accents are stripped and letters lower-cased (Devlin et al. 2019, "BERT", and its reference tokeniser). Then
    from a word's beginning the longest token that fits, and so on behind it, where tokens begin with ``##``. A word
    that cannot be cut like this, or has more than 100 characters, is unknown.

    Words are cut once and kept, since what an agent reads repeats.

    :param tokens: the vocabulary; a token's id is its place. 0 is the padding and 1 the unknown, whatever they are
        called.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._ids = {token: i for i, token in enumerate(tokens) if i > UNKNOWN}
        self._longest = max(map(len, self._ids), default=0)
        self._kept: dict[str, tuple[int, ...]] = {}

    def ids(self, text: str, most: int | None = None) -> list[int]:
        """Token ids of one text, at most the first ``most``."""
        found: list[int] = []
        for part in text.split(" "):
            pieces = self._kept.get(part)
            found += self._cut_and_keep(part) if pieces is None else pieces
            if most is not None and len(found) >= most:
                return found[:most]
        return found

    def matrix(self, texts: Sequence[str], length: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Token ids of n texts, float32 ``[n, length]``, padded with 0."""
        found = np.full((len(texts), length), PADDING, dtype=np.float32)
        for row, text in zip(found, texts, strict=True):
            ids = self.ids(text, length)
            row[: len(ids)] = ids
        return found

    def _cut_and_keep(self, part: str) -> tuple[int, ...]:
        """Ids of what stands between two spaces."""
        pieces = tuple(i for word in basic_words(part) for i in self._cut(word))
        if len(part) <= _LONGEST_WORD:
            if len(self._kept) >= _KEPT_WORDS:
                self._kept.clear()
            self._kept[part] = pieces
        return pieces

    def _cut(self, word: str) -> list[int]:
        if len(word) > _LONGEST_WORD:
            return [UNKNOWN]
        pieces: list[int] = []
        begin = 0
        while begin < len(word):
            prefix = "##" if begin else ""
            for end in range(min(len(word), begin + self._longest), begin, -1):
                found = self._ids.get(prefix + word[begin:end])
                if found is not None:
                    pieces.append(found)
                    begin = end
                    break
            else:
                return [UNKNOWN]
        return pieces


def basic_words(text: str) -> list[str]:
    """BERT's basic words: cleaned, without accents, in lower case, cut where it is white and around punctuation."""
    text = "".join(map(_cleaned, text))
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    text = "".join(map(str.lower, text))  # one by one: as a whole, a last Σ would become ς
    return "".join(f" {c} " if _is_punctuation(c) else c for c in text).split()


def _cleaned(character: str) -> str:
    if character in "\t\n\r":
        return " "
    if character == "\ufffd" or unicodedata.category(character) in _CONTROL:
        return ""
    if character.isspace():
        return " "
    return f" {character} " if _is_chinese(ord(character)) else character


def _is_chinese(code: int) -> bool:
    return code >= 0x3400 and any(low <= code <= high for low, high in _CHINESE)


def _is_punctuation(character: str) -> bool:
    return character in _ASCII_PUNCTUATION or (character > "\x7f" and unicodedata.category(character)[0] == "P")


_CONTROL = frozenset(["Cc", "Cf", "Co", "Cs"])  # and not Cn: what has no meaning yet may be a letter tomorrow
_ASCII_PUNCTUATION = frozenset(string.punctuation)
_CHINESE = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0x2F800, 0x2FA1F),
)  # fmt: skip
"""The blocks of Chinese characters as BERT's reference tokeniser counts them."""


# The instruction sets that ONNX Runtime's float32 and int8 kernels are chosen by.
_INSTRUCTIONS = (
    "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8",
    "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip


def processor() -> dict[str, Any]:
    """This machine's processor: its model ``name``, and ``flags``, those of its instruction sets that matter here.

    Where there is no ``/proc/cpuinfo``, only the name that Python knows.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return parse_cpuinfo(text)


def parse_cpuinfo(text: str) -> dict[str, Any]:
    """The first processor in the text of ``/proc/cpuinfo`` (x86: ``flags``, ARM: ``Features``)."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    present = (fields.get("flags") or fields.get("Features") or "").split()
    name = fields.get("model name") or platform.processor() or platform.machine() or "unknown"
    return {"name": name, "flags": [flag for flag in _INSTRUCTIONS if flag in present]}


class Variant:
    """One variant's folder, checked and loaded.

    :param folder: holds ``model.onnx`` and ``manifest.json``.
    :param threads: of ONNX Runtime; one is best for single rows.
    :raises ValueError: if the model is not the one that the manifest was written for.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        import onnxruntime

        folder = Path(folder)
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        model = (folder / "model.onnx").read_bytes()
        if hashlib.sha256(model).hexdigest() != self.manifest["sha256"]["model.onnx"]:
            raise ValueError(f"{folder / 'model.onnx'} is damaged: its checksum differs from the manifest's")
        self._compare_processors()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self.actions: list[str] = list(self.manifest["actions"])
        self.columns: list[dict[str, Any]] = list(self.manifest["columns"])
        self._encode = Encoder(self.columns)

    def _compare_processors(self) -> None:
        """Warn where this is another processor than the one that the variant was measured on."""
        measured, here = self.manifest.get("cpu"), processor()
        if measured is None or measured == here:
            return
        lacking = sorted(set(measured["flags"]) - set(here["flags"]))
        more = f", which lacks {', '.join(lacking)}" if lacking else ""
        warnings.warn(
            f"variant {self.manifest.get('variant', '')!r} was measured on {measured['name']} and serves on "
            f"{here['name']}{more}: its latency, and where it computes in int8 its answers, may differ",
            stacklevel=3,
        )

    def probabilities(self, matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Encoded rows, float32 ``[n, F + C + ΣL]``, to float32 ``[n, K]`` whose rows sum to 1."""
        result: np.ndarray[Any, Any] = self._session.run(None, {self._input: matrix})[0]
        return result

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        """Raw rows to float32 ``[n, K]`` whose rows sum to 1.

        :raises InputError: see :func:`encode`.
        """
        if rows.empty:
            return np.empty((0, len(self.actions)), dtype=np.float32)
        return self.probabilities(self._encode(rows))

    def predict(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Raw rows to their most probable ``action`` and one column ``p_<action>`` each, on the same index."""
        proba = self.predict_proba(rows)
        result = pd.DataFrame(proba, columns=[f"p_{action}" for action in self.actions], index=rows.index)
        result.insert(0, "action", np.asarray(self.actions, dtype=object)[proba.argmax(axis=1)])
        return result
