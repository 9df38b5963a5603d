"""What a user's objects must offer, and how ``"module:object"`` in a reviewed agent file is resolved."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from stillhouse.config.base import tagged
from stillhouse.errors import PartError

__all__ = [
    "ModelStore",
    "OffersText",
    "ReadyTeacher",
    "Source",
    "Teacher",
    "TextInitial",
    "import_kinds",
    "is_rehearsal",
    "rehearsing",
    "resolve",
]


@runtime_checkable
class Source(Protocol):
    """Where rows come from: observations or outcomes with ``start ≤ observed_at < end``."""

    def __call__(self, start: datetime, end: datetime, /) -> pd.DataFrame: ...


@runtime_checkable
class Teacher(Protocol):
    """Anything that decides better than the student, for a price, and learns from outcomes.

    ``fit`` takes n rows and n action indices in ``0…K−1``; ``predict_proba`` gives float64 ``[n, K]`` whose
    rows sum to 1; ``save`` writes native formats (text, ONNX, safetensors; no pickle) that ``load`` reads back.
    """

    def fit(self, rows: pd.DataFrame, outcomes: np.ndarray[Any, Any], /) -> None: ...

    def predict_proba(self, rows: pd.DataFrame, /) -> np.ndarray[Any, Any]: ...

    def save(self, folder: Path, /) -> None: ...

    @classmethod
    def load(cls, folder: Path, /) -> Teacher: ...


@runtime_checkable
class ReadyTeacher(Protocol):
    """A teacher with ``learns: false`` in the agent file: rules, or a model that is ready as soon as it is made.

    It is never fitted. ``predict_proba`` is as in :class:`Teacher`. What else it may offer:

    - ``save(folder)`` with the classmethod ``load(folder)``: it is kept with the champion, and asked later as it was
      then. Without them it is made anew from its settings whenever it is needed.
    - ``fingerprint() -> str``: a text that changes with what it says. Without it that is the content of what it saves,
      or else the source of the module that defines it.
    - ``bytes_elsewhere: int``: size of what it needs and does not save, such as an encoder that lies in a package.
    - ``features(rows) -> float32 [n, D]``: what it makes of the rows inside, always of the same width D, for students
      to match (``features: true`` in the agent file).
    """

    def predict_proba(self, rows: pd.DataFrame, /) -> np.ndarray[Any, Any]: ...


@dataclass(frozen=True)
class TextInitial:
    """A teacher's text encoder, for a student to begin with.

    :param tokens: WordPiece tokens in lower case, V of them, all different; ``##`` begins those within a word.
    :param embeddings: their vectors, float32 ``[V, D]``.
    :param layers: state of a BERT encoder as the transformers library names it (``encoder.layer.0.attention.self.
        query.weight``, ``embeddings.position_embeddings.weight`` …), float32; None: the embeddings are all.
    :param heads: of its attention.
    :param start: the token that a text begins with.
    :raises PartError: if the embeddings are not finite numbers ``[V, D]``, or a token comes twice.
    """

    tokens: Sequence[str]
    embeddings: np.ndarray[Any, Any]
    layers: Mapping[str, np.ndarray[Any, Any]] | None = None
    heads: int | None = None
    start: str = "[CLS]"

    def __post_init__(self) -> None:
        shape = np.shape(self.embeddings)
        if len(shape) != 2 or shape[0] != len(self.tokens) or not shape[1]:
            raise PartError(f"a text encoder of {len(self.tokens)} tokens has embeddings of shape {list(shape)}")
        if len(set(self.tokens)) < len(self.tokens):
            raise PartError("a text encoder names tokens more than once")
        if not np.isfinite(self.embeddings).all():
            raise PartError("a text encoder has embeddings that are not finite")


@runtime_checkable
class OffersText(Protocol):
    """A teacher whose text encoder a student may begin with; optional."""

    def text_encoder(self) -> TextInitial: ...


class ModelStore(Protocol):
    """Where a teacher of kind ``mlflow`` is loaded from. Only the registry may know MLflow: it is handed in."""

    def pin(self, uri: str) -> str:
        """The same model under an address that will always mean it: an alias becomes a version number."""
        ...

    def load(self, uri: str, digest: str | None = None, trusts_code: bool = False) -> Callable[[pd.DataFrame], Any]:
        """Rows to whatever the model gives.

        :param digest: of its files; others are refused.
        :param trusts_code: whether code that it brings may run.
        :raises PartError: if it brings code and is not trusted, or is not what ``digest`` says.
        """
        ...


def import_kinds(package: str, union: object) -> None:
    """Import ``<package>.<tag>`` for each section of a tagged union: each of these files registers its own kind.

    :param union: of sections of the agent file, such as :data:`stillhouse.config.LeafTeacher`.
    :raises ModuleNotFoundError: if a kind has no file.
    """
    for tag in tagged(union):
        importlib.import_module(f"{package}.{tag}")


_rehearsals = 0


@contextmanager
def rehearsing() -> Iterator[None]:
    """While it lasts, ``stillhouse check`` tries the parts: see :func:`is_rehearsal`."""
    global _rehearsals
    _rehearsals += 1
    try:
        yield
    finally:
        _rehearsals -= 1


def is_rehearsal() -> bool:
    """Whether parts are only tried, and what they say is thrown away.

    A part that prepares itself from much data, such as a teacher that embeds thousands of sentences when it is first
    asked, may then do with a sample of it, so that ``stillhouse check`` takes seconds.
    """
    return _rehearsals > 0


def resolve(target: str, *, where: str = "the agent file") -> Any:
    """Import the object that ``target`` (``"package.module:object"``) names.

    The working directory is importable, as it is for ``python -m``; ``where`` says in the message which key
    of which file named the target.

    :raises PartError: if the module does not import, or has no such object.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise PartError(f"{where}: {target!r} is not of the form 'package.module:object'")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise PartError(
            f"{where}: {target!r} does not import ({type(error).__name__}: {error}); "
            "run from the folder that holds the module, and install what it needs"
        ) from error
    found = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module_name and n[0] != "_"]
            raise PartError(f"{where}: {module_name!r} has no {attribute!r}; it has: {', '.join(own) or 'nothing'}")
        found = getattr(found, name)
    return found
