"""Run a deployed variant: one action per row. Requires numpy and onnxruntime, and pandas only for data frames.

This file and ``values.py`` are copied unchanged into every variant's folder, next to ``model.onnx`` and
``manifest.json``, so that the folder runs on a device without stillhouse and torch::

    variant = Variant("path/of/folder")
    variant.decide({"temp": 3.5, "origin": "JFK"})    # RowDecision(action="late", probabilities={...})
    variant.predict_proba([{...}, {...}])             # float32 [n, K]; also for a frame, or arrays by column
    variant.predict(frame)                            # DataFrame: action, p_<action> for each of the K actions

It must therefore not import anything else from stillhouse. When this file is loaded by its path, it loads ``values.py``
from the same folder.
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


def _load_sibling(name: str) -> Any:
    """The module ``name`` in this file's folder, loaded from source; byte code is ignored."""
    path = Path(__file__).with_name(f"{name}.py")
    module = ModuleType(name)
    module.__file__ = str(path)
    exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    return module


if TYPE_CHECKING or __package__:
    from . import values
else:  # loaded by its path, on a device without stillhouse
    values = _load_sibling("values")

__all__ = [
    "PADDING",
    "UNKNOWN",
    "Encoder",
    "InputError",
    "RowDecision",
    "Variant",
    "WordPiece",
    "basic_words",
    "encode",
    "parse_cpuinfo",
    "processor",
    "width",
]

_MAX_ROWS_PER_CALL = 4096  # the runtime never frees the memory of its largest call
PADDING, UNKNOWN = 0, 1  # token ids in every vocabulary
_MAX_WORD_CHARS = 100
_MAX_CACHED_WORDS = 50_000


Array = np.ndarray[Any, Any]
Matrix = np.ndarray[Any, np.dtype[np.float32]]
_TextOf = Callable[[str, Any], "str | None"]

_MAX_ROWWISE = 1000
"""A frame with at most this many rows is encoded row by row; a longer one by column, which needs less memory."""

_NUMERIC_TYPES = frozenset([float, int, bool, type(None), np.float64, np.float32, np.int64, np.int32, np.bool_])
"""Types that NumPy converts to numbers by itself, None to NaN."""


class InputError(ValueError):
    """The rows do not have the columns or types that the model needs."""


def encode(rows: Rows, columns: Sequence[Mapping[str, Any]]) -> Matrix:
    """Encode raw rows as the float32 matrix ``[n, F + C + ΣL]`` that a student reads; see :class:`Encoder`."""
    return Encoder(columns)(rows)


def width(columns: Sequence[Mapping[str, Any]]) -> int:
    """The number of values in an encoded row: one per number and category, ``length`` per text."""
    return sum(int(column["length"]) if column["type"] == "text" else 1 for column in columns)


class Encoder:
    """Encodes raw rows as the float32 matrix ``[n, F + C + ΣL]`` that a student reads.

    The F numbers come first, in their own units (missing: NaN). Then come the C categories as codes ``1…V``, the
    position of their text (by the rule of ``values.py``) in ``values``; 0 stands for a missing value and for a value
    that the student never saw. Last come L token ids per text, truncated or padded with 0; 1 is the unknown token; a
    missing text counts as empty. A float32 holds ids up to 2^24 exactly. Extra columns are ignored.

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
        self._by_name = self._getters(None)
        self._last_frame: tuple[list[Any], _Getters] = ([], self._by_name)

    def __call__(self, rows: Rows) -> Matrix:
        """Encode ``rows``: a mapping by column, a sequence of them, arrays or lists by column, or a pandas DataFrame.

        :raises InputError: naming the columns that are missing, not numeric, infinite, or of a type without text form.
        """
        if isinstance(rows, Mapping):
            first = next(map(rows.get, self.names), None)
            if isinstance(first, list | tuple) or getattr(first, "ndim", 0) == 1:
                self._require(rows)
                return self._encode_columns(rows)
            rows = [rows]
        elif not isinstance(rows, Sequence):
            if not hasattr(rows, "columns"):
                raise InputError(f"a {type(rows).__name__} has no rows by column: give a mapping, several, or a frame")
            return self._encode_frame(rows)
        try:
            return self._encode_rows(rows, self._by_name)
        except (KeyError, TypeError, IndexError):
            for number, row in enumerate(rows):
                self._require(row, f"row {number}: " if len(rows) > 1 else "")
            raise

    def trusting(self, names: Sequence[str]) -> Callable[[Sequence[Sequence[Any]]], Matrix]:
        """A faster encoder of rows that are sequences in the order ``names`` and whose numbers are float or None."""
        getters = self._getters(names)
        return lambda rows: self._encode_rows(rows, getters, trusted=True)

    # ----------------------------------------------------------------- row by row

    def _getters(self, names: Sequence[Any] | None) -> _Getters:
        """Getters for rows that are sequences in the order ``names``; None: for rows that are mappings."""
        keys = {name: name for name in self.names} if names is None else {name: i for i, name in enumerate(names)}
        kinds = (self._numbers, [name for name, _ in self._categories], [name for name, _, _ in self._texts])
        return _Getters(*(_getter([keys[name] for name in kind]) for kind in kinds))

    def _encode_rows(
        self, rows: Sequence[Any], getters: _Getters, trusted: bool = False, text_of: _TextOf | None = None
    ) -> Matrix:
        matrix = np.empty((len(rows), self._width), dtype=np.float32)
        if not len(matrix):
            return matrix
        end = len(self._numbers)
        if end:
            table = [*map(getters.numbers, rows)]
            if not trusted and not _NUMERIC_TYPES.issuperset(map(type, chain.from_iterable(table))):
                table = [tuple(map(_number, self._numbers, row)) for row in table]
            with np.errstate(over="ignore"):
                try:
                    matrix[:, :end] = np.array(table, dtype=np.float64)
                except OverflowError as error:
                    raise InputError(f"a number is too large for float32: {error}") from error
        if self._categories:
            columns = zip(*map(getters.categories, rows), strict=True)
            encoded = [_codes(name, codes, next(columns), text_of or _text) for name, codes in self._categories]
            matrix[:, end : end + len(encoded)] = np.array(encoded).T
        return self._fill_texts(matrix, zip(*map(getters.texts, rows), strict=True) if self._texts else ())

    # ----------------------------------------------------------------- column by column

    def _encode_columns(self, columns: Mapping[str, Any]) -> Matrix:
        """``columns`` are arrays, lists, or pandas series, all of one length."""
        try:
            lengths = {name: len(columns[name]) for name in self.names}
        except TypeError as error:
            raise InputError(f"some columns are lists and some are not: {error}") from error
        if len(set(lengths.values())) > 1:
            raise InputError(f"the columns have different lengths: {lengths}")
        matrix = np.empty((next(iter(lengths.values()), 0), self._width), dtype=np.float32)
        with np.errstate(over="ignore"):
            for index, name in enumerate(self._numbers):
                matrix[:, index] = _numbers(name, columns[name])
        for index, (name, codes) in enumerate(self._categories, len(self._numbers)):
            matrix[:, index] = _codes(name, codes, _to_list(columns[name]), _text)
        return self._fill_texts(matrix, (_to_list(columns[name]) for name, _, _ in self._texts))

    def _encode_frame(self, rows: pd.DataFrame) -> Matrix:
        names = rows.columns.tolist()
        last_names, getters = self._last_frame
        if names != last_names:
            self._require(dict.fromkeys(names))
            if repeated := [name for name in self.names if names.count(name) > 1]:
                raise InputError(f"several columns are called {repeated[0]!r}: rename or drop all but one")
            getters = self._getters(names)
            self._last_frame = (names, getters)
        if len(rows) > _MAX_ROWWISE:
            return self._encode_columns(rows)  # type: ignore[arg-type]  # columns by name, as in a mapping
        if (
            len(rows) == 1 and (row := rows.iloc[0]).dtype.kind not in "biuf"
        ):  # otherwise pandas has cast its numbers to one type
            return self._encode_rows([row.tolist()], getters)
        cells = rows.to_numpy(dtype=object).tolist()
        try:
            return self._encode_rows(cells, getters, text_of=_text_unless_widened)
        except _Widened:  # pandas has cast a float32 to float; the column still has its type
            return self._encode_columns(rows)  # type: ignore[arg-type]

    # ----------------------------------------------------------------- shared

    def _fill_texts(self, matrix: Matrix, texts: Iterable[Iterable[Any]]) -> Matrix:
        """Check the numbers of ``matrix`` and fill in the token ids of ``texts``, one iterable per column."""
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


class _Getters(NamedTuple):
    """Functions that return the values of one kind of columns from a row."""

    numbers: Callable[[Any], tuple[Any, ...]]
    categories: Callable[[Any], tuple[Any, ...]]
    texts: Callable[[Any], tuple[Any, ...]]


def _getter(keys: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    if len(keys) > 1:
        return itemgetter(*keys)
    return (lambda row: (row[keys[0]],)) if keys else lambda row: ()


def _number(name: str, value: Any) -> float:
    """One value of a number column, which may be text; NaN if it is missing."""
    try:
        return values.number_of(_scalar(value), from_text=True)
    except (values.ValueRefused, TypeError) as error:
        raise InputError(f"column {name!r} must be numeric: {error}") from error


def _numbers(name: str, column: Any) -> Array:
    """A number column, float64 ``[n]``, NaN where a value is missing."""
    dtype = getattr(column, "dtype", None)
    kind = getattr(dtype, "kind", "O")
    if kind in "mMc":
        raise InputError(f"column {name!r} must be numeric, not {dtype}")
    if kind in "fiub":
        # pandas' own dtypes have another missing value than NaN
        is_numpy = isinstance(dtype, np.dtype)
        return np.asarray(column if is_numpy else column.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)
    items = _to_list(column)
    if not _NUMERIC_TYPES.issuperset(map(type, items)):
        items = [_number(name, value) for value in items]
    try:
        return np.array(items, dtype=np.float64)
    except OverflowError as error:
        raise InputError(f"column {name!r} holds a number that is too large for float32: {error}") from error


def _text(name: str, value: Any) -> str | None:
    try:
        return values.text_of(_scalar(value))
    except values.ValueRefused as error:
        raise InputError(f"column {name!r}: {error}") from error


class _Widened(Exception):  # noqa: N818
    """A float that may have been a float32, whose text would differ."""


def _text_unless_widened(name: str, value: Any) -> str | None:
    """:func:`_text`.

    :raises _Widened: for a float that may have been a float32; small whole numbers have the same text in both types.
    """
    if type(value) is float and value == value and not (value.is_integer() and abs(value) < 2**24):
        raise _Widened
    return _text(name, value)


def _codes(name: str, codes: Mapping[str | None, int], column: Iterable[Any], text_of: _TextOf) -> list[int]:
    """Codes of a category's values, from 1; 0 for missing and unknown values."""
    return [
        codes.get(value, 0) if type(value) is str else 0 if value is None else codes.get(text_of(name, value), 0)
        for value in column
    ]


def _scalar(value: Any) -> Any:
    """Unpack an array without dimensions, which MLflow's parser makes of a single value."""
    return value.item() if isinstance(value, np.ndarray) and not value.ndim else value


def _to_list(column: Any) -> list[Any]:
    """The values with their own types; the iterator of a series would cast a float32 to float."""
    to_numpy = hasattr(column, "to_numpy") and column.dtype.kind != "M"  # that would drop the time zone of a timestamp
    return list(column.to_numpy() if to_numpy else column)


class WordPiece:
    """WordPiece tokenizer: splits texts into BERT's basic words, and each word greedily into the longest known tokens.

    Control characters are removed, white space separates words, each punctuation mark and each Chinese character is a
    word, accents are stripped, and letters lower-cased (Devlin et al. 2019, "BERT", and its reference tokenizer). A
    word is matched from its beginning with the longest token; tokens after the first begin with ``##``. A word without
    such a split, or with more than 100 characters, is the unknown token. The ids of words are cached.

    :param tokens: the vocabulary; a token's id is its position. 0 is padding and 1 unknown, whatever their names.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._ids = {token: i for i, token in enumerate(tokens) if i > UNKNOWN}
        self._max_token_chars = max(map(len, self._ids), default=0)
        self._cache: dict[str, tuple[int, ...]] = {}

    def ids(self, text: str, max_length: int | None = None) -> list[int]:
        """Token ids of one text, at most the first ``max_length``."""
        ids: list[int] = []
        for part in text.split(" "):
            pieces = self._cache.get(part)
            ids += self._split_part(part) if pieces is None else pieces
            if max_length is not None and len(ids) >= max_length:
                return ids[:max_length]
        return ids

    def matrix(self, texts: Sequence[str], length: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Token ids of n texts, float32 ``[n, length]``, padded with 0."""
        matrix = np.full((len(texts), length), PADDING, dtype=np.float32)
        for row, text in zip(matrix, texts, strict=True):
            ids = self.ids(text, length)
            row[: len(ids)] = ids
        return matrix

    def _split_part(self, part: str) -> tuple[int, ...]:
        """Ids of the text between two spaces; cached."""
        pieces = tuple(i for word in basic_words(part) for i in self._split_word(word))
        if len(part) <= _MAX_WORD_CHARS:
            if len(self._cache) >= _MAX_CACHED_WORDS:
                self._cache.clear()
            self._cache[part] = pieces
        return pieces

    def _split_word(self, word: str) -> list[int]:
        if len(word) > _MAX_WORD_CHARS:
            return [UNKNOWN]
        pieces: list[int] = []
        begin = 0
        while begin < len(word):
            prefix = "##" if begin else ""
            for end in range(min(len(word), begin + self._max_token_chars), begin, -1):
                token_id = self._ids.get(prefix + word[begin:end])
                if token_id is not None:
                    pieces.append(token_id)
                    begin = end
                    break
            else:
                return [UNKNOWN]
        return pieces


def basic_words(text: str) -> list[str]:
    """BERT's basic words: cleaned, without accents, lower-cased, split at white space and around punctuation."""
    text = "".join(map(_clean, text))
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    text = "".join(map(str.lower, text))  # per character: in the whole text, a final Σ would become ς
    return "".join(f" {c} " if _is_punctuation(c) else c for c in text).split()


def _clean(character: str) -> str:
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


_CONTROL = frozenset(["Cc", "Cf", "Co", "Cs"])  # without Cn: an unassigned character may become a letter
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
"""Blocks of Chinese characters in BERT's reference tokenizer."""


# The instruction sets by which ONNX Runtime selects its float32 and int8 kernels.
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
    """This machine's processor: its model ``name``, and ``flags``, its instruction sets that affect ONNX Runtime.

    Without ``/proc/cpuinfo``, only the name that Python reports.
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
    """A variant loaded from its folder, with its checksum verified.

    >>> import numpy as np, pandas as pd, stillhouse, tempfile
    >>> rows = pd.DataFrame({"x": np.linspace(-1, 1, 100)})
    >>> student = stillhouse.distil(rows, np.column_stack([rows.x < 0, rows.x >= 0]), actions=["no", "yes"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = student.compress(f"{folder}/variant", search=None)
    ...     Variant(f"{folder}/variant").decide({"x": 0.9}).action
    'yes'

    :param folder: holds ``model.onnx`` and ``manifest.json``.
    :param threads: number of ONNX Runtime's threads; one is fastest for single rows.
    :raises ValueError: if the model does not match the checksum in the manifest.
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
        self._pandas_labels: Any = None

    def _compare_processors(self) -> None:
        """Warn if the processor differs from the one that the variant was measured on."""
        measured, here = self.manifest.get("cpu"), processor()
        if measured is None or measured == here:
            return
        missing = sorted(set(measured["flags"]) - set(here["flags"]))
        note = f", which lacks {', '.join(missing)}" if missing else ""
        warnings.warn(
            f"variant {self.manifest.get('variant', '')!r} was measured on {measured['name']} and serves on "
            f"{here['name']}{note}: its latency, and in int8 its probabilities, may differ",
            stacklevel=3,
        )

    def probabilities(self, matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Encoded rows, float32 ``[n, F + C + ΣL]``, to float32 ``[n, K]`` whose rows sum to 1."""
        if len(matrix) > _MAX_ROWS_PER_CALL:
            starts = range(0, len(matrix), _MAX_ROWS_PER_CALL)
            return np.concatenate([self.probabilities(matrix[start : start + _MAX_ROWS_PER_CALL]) for start in starts])
        result: np.ndarray[Any, Any] = self._session.run(None, {self._input: matrix})[0]
        return result

    def predict_proba(self, rows: Rows) -> Matrix:
        """Raw rows to float32 ``[n, K]`` whose rows sum to 1; ``rows`` as in :meth:`Encoder.__call__`.

        :raises InputError: see there.
        """
        matrix = self.encoder(rows)
        return self.probabilities(matrix) if len(matrix) else np.empty((0, len(self.actions)), dtype=np.float32)

    @overload
    def decide(self, rows: Mapping[str, Any]) -> RowDecision: ...
    @overload
    def decide(self, rows: Sequence[Mapping[str, Any]]) -> list[RowDecision]: ...
    def decide(self, rows: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> RowDecision | list[RowDecision]:
        """The most probable action of one row (a mapping by column), or a list of them for several rows.

        :raises InputError: see :meth:`Encoder.__call__`.
        """
        probs = self.predict_proba([rows] if isinstance(rows, Mapping) else rows)
        decisions = [
            RowDecision(self.actions[best], dict(zip(self.actions, row_probs, strict=True)))
            for best, row_probs in zip(probs.argmax(axis=1).tolist(), probs.tolist(), strict=True)
        ]
        return decisions[0] if isinstance(rows, Mapping) else decisions

    def predict(self, rows: Rows) -> pd.DataFrame:
        """The most probable ``action`` of raw rows and one column ``p_<action>`` per action, with the same index."""
        import pandas as pd

        probs = self.predict_proba(rows)
        if self._pandas_labels is None:
            self._pandas_labels = (
                pd.Index([f"p_{action}" for action in self.actions]),
                pd.array(self.actions, dtype="str"),
            )
        columns, actions = self._pandas_labels
        index = rows.index if isinstance(rows, pd.DataFrame) else None
        result = pd.DataFrame(probs, columns=columns, index=index, copy=False)
        result.insert(0, "action", actions.take(probs.argmax(axis=1)))
        return result


class RowDecision(NamedTuple):
    """The decision about one row."""

    action: str
    probabilities: dict[str, float]
    """Probability of every action."""


if TYPE_CHECKING:
    Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame
    """A row by column, a sequence of rows, arrays or lists by column, or a frame."""
