"""A deployed variant: rows in, one action per row out. Needs numpy and onnxruntime; pandas where frames are given.

This file and ``values.py`` are copied as they are into every variant's folder, beside ``model.onnx`` and
``manifest.json``, so that the folder runs on a device that knows neither stillhouse nor torch::

    variant = Variant("path/of/folder")
    variant.decide({"temp": 3.5, "origin": "JFK"})    # Decided(action="late", probabilities={...})
    variant.predict_proba([{...}, {...}])             # float32 [n, K]: also of a frame, or of arrays by column
    variant.predict(frame)                            # DataFrame: action, p_<action> for each of the K actions

It must therefore import nothing else of stillhouse. Whoever loads it by its path need do nothing about ``values.py``:
it is found in the same folder.
"""

from __future__ import annotations

import hashlib
import json
import platform
import string
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

if TYPE_CHECKING:
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
    "Decided",
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

_ROWS_AT_ONCE = 4096  # of one call to the runtime, which keeps as much memory as its largest call took
PADDING, UNKNOWN = 0, 1  # token ids in every vocabulary
_LONGEST_WORD = 100  # characters
_KEPT_WORDS = 50_000


Array = np.ndarray[Any, Any]
Matrix = np.ndarray[Any, np.dtype[np.float32]]
_TextOf = Callable[[str, Any], "str | None"]

_FEW_ROWS = 1000
"""A frame of at most so many rows is read row by row; a longer one column by column: slower, and in less memory."""

_PLAIN = frozenset([float, int, bool, type(None), np.float64, np.float32, np.int64, np.int32, np.bool_])
"""Types that NumPy reads as numbers by itself, None as NaN."""


class InputError(ValueError):
    """The rows do not have the columns or types that the model needs."""


def encode(rows: Rows, columns: Sequence[Mapping[str, Any]]) -> Matrix:
    """Raw rows as the float32 matrix ``[n, F + C + ΣL]`` that a student reads; see :class:`Encoder`."""
    return Encoder(columns)(rows)


def width(columns: Sequence[Mapping[str, Any]]) -> int:
    """How many values an encoded row has: one for each number and category, ``length`` for each text."""
    return sum(int(column["length"]) if column["type"] == "text" else 1 for column in columns)


class Encoder:
    """Raw rows to the float32 matrix ``[n, F + C + ΣL]`` that a student reads.

    First the F numbers in their own units (missing: NaN), then the C categories as codes ``1…V`` by their position in
    ``values``, read as text by the rule of ``values.py``; 0 stands for missing and for values that the student never
    saw. Then for each text L token ids, cut or padded with 0; 1 is the unknown token, and a missing text is an empty
    one. As float32 an id is exact up to 2^24. Extra columns are ignored.

    >>> encoder = Encoder([{"name": "temp", "type": "number"}, {"name": "gate", "type": "category", "values": ["1"]}])
    >>> encoder({"temp": 3.5, "gate": 1}).tolist()
    [[3.5, 1.0]]

    :param columns: ``{"name", "type": "number" | "category" | "text", "values"?, "tokens"?, "length"?}``, numbers
        before categories before texts; ``tokens`` is the vocabulary of :class:`WordPiece`, ``length`` is L.
    """

    def __init__(self, columns: Sequence[Mapping[str, Any]]) -> None:
        self.columns = columns
        self.names: list[str] = [column["name"] for column in columns]
        self._width = width(columns)
        self._numbers = [column["name"] for column in columns if column["type"] == "number"]
        self._categories = [
            (column["name"], {value: i + 1 for i, value in enumerate(column["values"])})
            for column in columns
            if column["type"] == "category"
        ]
        self._texts = [
            (column["name"], WordPiece(column["tokens"]), int(column["length"]))
            for column in columns
            if column["type"] == "text"
        ]
        self._by_name = self._places(None)
        self._last_frame: tuple[list[Any], _Places] = ([], self._by_name)

    def __call__(self, rows: Rows) -> Matrix:
        """Encode ``rows``: a mapping by column, several of them, arrays or lists by column, or a pandas DataFrame.

        :raises InputError: naming the columns that are missing, not numeric, infinite, or of a type that has no text.
        """
        if isinstance(rows, Mapping):
            first = next(map(rows.get, self.names), None)
            if isinstance(first, list | tuple) or getattr(first, "ndim", 0) == 1:
                self._require(rows)
                return self._by_columns(rows)
            rows = [rows]
        elif not isinstance(rows, Sequence):
            if not hasattr(rows, "columns"):
                raise InputError(f"a {type(rows).__name__} has no rows by column: give a mapping, several, or a frame")
            return self._of_frame(rows)
        try:
            return self._by_rows(rows, self._by_name)
        except (KeyError, TypeError, IndexError):
            for number, row in enumerate(rows):
                self._require(row, f"row {number}: " if len(rows) > 1 else "")
            raise

    def trusting(self, given: Sequence[str]) -> Callable[[Sequence[Sequence[Any]]], Matrix]:
        """An encoder of sequences in the order ``given`` whose numbers are known to be float or None."""
        places = self._places(given)
        return lambda rows: self._by_rows(rows, places, trusted=True)

    # ----------------------------------------------------------------- row by row

    def _places(self, given: Sequence[Any] | None) -> _Places:
        """Where the columns are in a row that is a sequence in the order ``given``; None: in a mapping."""
        keys = {name: name for name in self.names} if given is None else {name: i for i, name in enumerate(given)}
        kinds = (self._numbers, [name for name, _ in self._categories], [name for name, _, _ in self._texts])
        return _Places(*(_getter([keys[name] for name in names]) for names in kinds))

    def _by_rows(
        self, rows: Sequence[Any], places: _Places, trusted: bool = False, text_of: _TextOf | None = None
    ) -> Matrix:
        matrix = np.empty((len(rows), self._width), dtype=np.float32)
        if not len(matrix):
            return matrix
        end = len(self._numbers)
        if end:
            table = [*map(places.numbers, rows)]
            if not trusted and not _PLAIN.issuperset(map(type, chain.from_iterable(table))):
                table = [tuple(map(_number, self._numbers, row)) for row in table]
            with np.errstate(over="ignore"):
                try:
                    matrix[:, :end] = np.array(table, dtype=np.float64)
                except OverflowError as error:
                    raise InputError(f"a number is too large for float32: {error}") from error
        if self._categories:
            columns = zip(*map(places.categories, rows), strict=True)
            codes = [_codes(name, known, next(columns), text_of or _text) for name, known in self._categories]
            matrix[:, end : end + len(codes)] = np.array(codes).T
        return self._with_texts(matrix, zip(*map(places.texts, rows), strict=True) if self._texts else ())

    # ----------------------------------------------------------------- column by column

    def _by_columns(self, columns: Mapping[str, Any]) -> Matrix:
        """``columns`` are arrays, lists, or pandas' series, all of one length."""
        try:
            lengths = {name: len(columns[name]) for name in self.names}
        except TypeError as error:
            raise InputError(f"some columns are lists and some are not: {error}") from error
        if len(set(lengths.values())) > 1:
            raise InputError(f"the columns have different lengths: {lengths}")
        matrix = np.empty((next(iter(lengths.values()), 0), self._width), dtype=np.float32)
        with np.errstate(over="ignore"):
            for place, name in enumerate(self._numbers):
                matrix[:, place] = _numbers(name, columns[name])
        for place, (name, known) in enumerate(self._categories, len(self._numbers)):
            matrix[:, place] = _codes(name, known, _listed(columns[name]), _text)
        return self._with_texts(matrix, (_listed(columns[name]) for name, _, _ in self._texts))

    def _of_frame(self, rows: pd.DataFrame) -> Matrix:
        names = rows.columns.tolist()
        last, places = self._last_frame
        if names != last:
            self._require(dict.fromkeys(names))
            if twice := [name for name in self.names if names.count(name) > 1]:
                raise InputError(f"several columns are called {twice[0]!r}: rename or drop all but one")
            places = self._places(names)
            self._last_frame = (names, places)
        if len(rows) > _FEW_ROWS:
            return self._by_columns(rows)  # type: ignore[arg-type]  # columns by name, as in a mapping
        if len(rows) == 1 and (row := rows.iloc[0]).dtype.kind not in "biuf":  # else its numbers are of one type now
            return self._by_rows([row.tolist()], places)
        cells = rows.to_numpy(dtype=object).tolist()
        try:
            return self._by_rows(cells, places, text_of=_text_unless_widened)
        except _Widened:  # pandas made a float32 a float: by columns it is still one
            return self._by_columns(rows)  # type: ignore[arg-type]

    # ----------------------------------------------------------------- both

    def _with_texts(self, matrix: Matrix, texts: Iterable[Iterable[Any]]) -> Matrix:
        """``matrix`` with its numbers checked and the token ids of ``texts``, one iterable a column, filled in."""
        numbers = matrix[:, : len(self._numbers)]
        if np.count_nonzero(np.isinf(numbers)):
            name = self._numbers[int(np.isinf(numbers).any(axis=0).argmax())]
            raise InputError(f"column {name!r} holds infinite values, or too large for float32; missing is NaN or None")
        end = len(self._numbers) + len(self._categories)
        for (name, pieces, length), column in zip(self._texts, texts, strict=True):
            plain = [value if type(value) is str else _text(name, value) or "" for value in column]
            matrix[:, end : end + length] = pieces.matrix(plain, length)
            end += length
        return matrix

    def _require(self, row: Any, where: str = "") -> None:
        if not isinstance(row, Mapping):
            raise InputError(f"{where}must be a mapping by column, and is a {type(row).__name__}")
        if missing := [name for name in self.names if name not in row]:
            raise InputError(f"{where}missing columns {missing}; the rows have {list(row)}")


class _Places(NamedTuple):
    """How the values of each kind of column are got from a row."""

    numbers: Callable[[Any], tuple[Any, ...]]
    categories: Callable[[Any], tuple[Any, ...]]
    texts: Callable[[Any], tuple[Any, ...]]


def _getter(keys: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    if len(keys) > 1:
        return itemgetter(*keys)
    return (lambda row: (row[keys[0]],)) if keys else lambda row: ()


def _number(name: str, value: Any) -> float:
    """One value of a number column, also as a text; NaN where it is missing."""
    try:
        return values.number_of(_scalar(value), from_text=True)
    except (values.ValueRefused, TypeError) as error:
        raise InputError(f"column {name!r} must be numeric: {error}") from error


def _numbers(name: str, column: Any) -> Array:
    """The same of a whole column, float64 ``[n]``."""
    dtype = getattr(column, "dtype", None)
    kind = getattr(dtype, "kind", "O")
    if kind in "mMc":
        raise InputError(f"column {name!r} must be numeric, not {dtype}")
    if kind in "fiub":
        # Of pandas' own types: with their word for missing.
        known = isinstance(dtype, np.dtype)
        return np.asarray(column if known else column.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)
    found = _listed(column)
    if not _PLAIN.issuperset(map(type, found)):
        found = [_number(name, value) for value in found]
    try:
        return np.array(found, dtype=np.float64)
    except OverflowError as error:
        raise InputError(f"column {name!r} holds a number that is too large for float32: {error}") from error


def _text(name: str, value: Any) -> str | None:
    try:
        return values.text_of(_scalar(value))
    except values.ValueRefused as error:
        raise InputError(f"column {name!r}: {error}") from error


class _Widened(Exception):  # noqa: N818
    """A float that may have been a float32, whose text is another."""


def _text_unless_widened(name: str, value: Any) -> str | None:
    """:raises _Widened: where a float that is no small whole number may have been a float32."""
    if type(value) is float and value == value and not (value.is_integer() and abs(value) < 2**24):
        raise _Widened
    return _text(name, value)


def _codes(name: str, known: Mapping[str | None, int], column: Iterable[Any], text_of: _TextOf) -> list[int]:
    """The places of a category's values, from 1 on; 0 for missing and unknown ones."""
    return [
        known.get(value, 0) if type(value) is str else 0 if value is None else known.get(text_of(name, value), 0)
        for value in column
    ]


def _scalar(value: Any) -> Any:
    """MLflow's parser makes arrays without a dimension of single values."""
    return value.item() if isinstance(value, np.ndarray) and not value.ndim else value


def _listed(column: Any) -> list[Any]:
    """The values one by one, each of its own type: a series' iterator would widen a float32."""
    to_numpy = hasattr(column, "to_numpy") and column.dtype.kind != "M"  # which would cut what a timestamp is
    return list(column.to_numpy() if to_numpy else column)


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
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
"""The blocks of Chinese characters as BERT's reference tokeniser counts them."""


# The instruction sets that ONNX Runtime's float32 and int8 kernels are chosen by.
_INSTRUCTIONS = (
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)


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
        self.encoder = Encoder(self.columns)
        self._as_pandas: Any = None

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
        if len(matrix) > _ROWS_AT_ONCE:
            starts = range(0, len(matrix), _ROWS_AT_ONCE)
            return np.concatenate([self.probabilities(matrix[start : start + _ROWS_AT_ONCE]) for start in starts])
        result: np.ndarray[Any, Any] = self._session.run(None, {self._input: matrix})[0]
        return result

    def predict_proba(self, rows: Rows) -> Matrix:
        """Raw rows to float32 ``[n, K]`` whose rows sum to 1; ``rows`` as in :meth:`Encoder.__call__`.

        :raises InputError: see there.
        """
        matrix = self.encoder(rows)
        return self.probabilities(matrix) if len(matrix) else np.empty((0, len(self.actions)), dtype=np.float32)

    @overload
    def decide(self, rows: Mapping[str, Any]) -> Decided: ...
    @overload
    def decide(self, rows: Sequence[Mapping[str, Any]]) -> list[Decided]: ...
    def decide(self, rows: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Decided | list[Decided]:
        """One row, a mapping by column, to its most probable action; several to a list of them.

        :raises InputError: see :meth:`Encoder.__call__`.
        """
        found = self.predict_proba([rows] if isinstance(rows, Mapping) else rows)
        made = [
            Decided(self.actions[best], dict(zip(self.actions, each, strict=True)))
            for best, each in zip(found.argmax(axis=1).tolist(), found.tolist(), strict=True)
        ]
        return made[0] if isinstance(rows, Mapping) else made

    def predict(self, rows: Rows) -> pd.DataFrame:
        """Raw rows to their most probable ``action`` and one column ``p_<action>`` each, on the same index."""
        import pandas as pd

        proba = self.predict_proba(rows)
        if self._as_pandas is None:
            self._as_pandas = pd.Index([f"p_{action}" for action in self.actions]), pd.array(self.actions, dtype="str")
        columns, actions = self._as_pandas
        index = rows.index if isinstance(rows, pd.DataFrame) else None
        result = pd.DataFrame(proba, columns=columns, index=index, copy=False)
        result.insert(0, "action", actions.take(proba.argmax(axis=1)))
        return result


class Decided(NamedTuple):
    """What is decided about one row."""

    action: str
    probabilities: dict[str, float]
    """Of every action."""


if TYPE_CHECKING:
    Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame
    """A row by column, several of them, arrays or lists by column, or a frame."""
