"""Protocols of the user's objects, and how ``"module:object"`` in a reviewed agent file is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from stillhouse.agent_modules import find_beside, import_beside
from stillhouse.config.base import tagged
from stillhouse.errors import PartError

__all__ = [
    "HasTextEncoder",
    "ModelStore",
    "ReadyTeacher",
    "Teacher",
    "TextEncoderState",
    "import_kinds",
    "is_rehearsal",
    "rehearsing",
    "resolve",
]


@runtime_checkable
class Teacher(Protocol):
    """A model that decides better than the student, at a cost, and is fitted on outcomes.

    ``fit`` takes n rows and n action indices in ``0…K−1``; ``predict_proba`` returns float64 ``[n, K]`` whose rows sum
    to 1; ``save`` writes native formats (text, ONNX, safetensors; no pickle) that ``load`` reads.
    """

    def fit(self, rows: pd.DataFrame, labels: np.ndarray[Any, Any], /) -> None: ...

    def predict_proba(self, rows: pd.DataFrame, /) -> np.ndarray[Any, Any]: ...

    def save(self, folder: Path, /) -> None: ...

    @classmethod
    def load(cls, folder: Path, /) -> Teacher: ...


@runtime_checkable
class ReadyTeacher(Protocol):
    """A teacher with ``learns: false`` in the agent file: rules, or a finished model.

    It is never fitted. ``predict_proba`` is as in :class:`Teacher`. Optional methods and attributes:

    - ``save(folder)`` with the classmethod ``load(folder)``: the teacher is stored with the champion and
      loaded from there. Without them it is created from its settings whenever it is needed.
    - ``fingerprint() -> str``: a text that changes when its answers change. The default is the content of the files
      that it saves, or else the source of the module that defines it.
    - ``bytes_elsewhere: int``: size of files that it needs and does not save, such as an encoder in a package.
    - ``features(rows) -> float32 [n, D]``: hidden representation of the rows, always of the same width D, for students
      to match (``features: true`` in the agent file).
    - ``at(now, training_end) -> ReadyTeacher``: the teacher as a refresh at ``now`` uses it, whose training rows were
      observed before ``training_end`` (moments in UTC). For rules with dated versions, and for what reads outcomes: it
      must not know of outcomes that became known later than a row, or than ``training_end``, if that is later. Each
      watch calls it again; if the files or the fingerprint then differ from those of the champion's teacher, the
      teacher was changed, and the watch asks for a refresh.
    - ``overrules(rows) -> bool [n]``: rows whose outcome teaches nothing, because it followed rules that have changed
      since. Students are not trained on these outcomes; the gate judges on all.
    - ``use_knowledge_base(base)``: called once the teacher was made or loaded, with the agent's own
      :class:`stillhouse.KnowledgeBase`.
    """

    def predict_proba(self, rows: pd.DataFrame, /) -> np.ndarray[Any, Any]: ...


@dataclass(frozen=True)
class TextEncoderState:
    """The vocabulary and the weights of a teacher's text encoder, to initialise a student from.

    >>> state = TextEncoderState(["taxi", "##s"], np.zeros((2, 8), dtype=np.float32))
    >>> state.start
    '[CLS]'

    :param tokens: V different WordPiece tokens in lower case; those inside a word begin with ``##``.
    :param embeddings: vectors of the tokens, float32 ``[V, D]``.
    :param layers: state of a BERT encoder as the transformers library names it (``encoder.layer.0.attention.self.
        query.weight``, ``embeddings.position_embeddings.weight`` …), float32; None: embeddings only.
    :param heads: number of attention heads.
    :param start: the token at the start of each text.
    :raises PartError: if the embeddings are not finite numbers ``[V, D]``, or a token is repeated.
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
class HasTextEncoder(Protocol):
    """A teacher that offers its text encoder, to initialise a student from; optional."""

    def text_encoder(self) -> TextEncoderState: ...


class ModelStore(Protocol):
    """Loads models for teachers of kind ``mlflow``. Only the registry may import MLflow, so it is passed in."""

    def pin(self, uri: str) -> str:
        """The address of exactly this model: an alias is replaced by its version number."""
        ...

    def load(self, uri: str, digest: str | None = None, trusts_code: bool = False) -> Callable[[pd.DataFrame], Any]:
        """Load a model as a function from rows to its output.

        :param digest: digest of the model's files; other files are refused.
        :param trusts_code: whether code of the model may run.
        :raises PartError: if the model contains code and is not trusted, or its files do not match ``digest``.
        """
        ...


def import_kinds(package: str, union: object) -> None:
    """Import ``<package>.<tag>`` for each section of a tagged union; each of these modules registers its kind.

    :param union: sections of the agent file, such as :data:`stillhouse.config.LeafTeacher`.
    :raises ModuleNotFoundError: if a kind has no module.
    """
    for tag in tagged(union):
        importlib.import_module(f"{package}.{tag}")


_active_rehearsals = 0


@contextmanager
def rehearsing() -> Iterator[None]:
    """A context in which :func:`is_rehearsal` is true; ``stillhouse check`` uses it.

    >>> with rehearsing():
    ...     is_rehearsal()
    True
    """
    global _active_rehearsals
    _active_rehearsals += 1
    try:
        yield
    finally:
        _active_rehearsals -= 1


def is_rehearsal() -> bool:
    """Whether ``stillhouse check`` is only testing the user's objects, and discards their answers.

    An object that prepares itself from much data (a teacher that computes thousands of embeddings on its first call,
    say) may then use a sample of the data, so that the check takes seconds.
    """
    return _active_rehearsals > 0


def resolve(target: str, *, where: str = "the agent file", folder: Path | None = None) -> Any:
    """Import the object that ``target`` (``"package.module:object"``) names.

    >>> resolve("math:sqrt")(4)
    2.0

    A module beside the agent file comes first; see :mod:`stillhouse.agent_modules`. Otherwise it is an installed
    module, or one in the working directory, as with ``python -m``.

    :param where: the file and the key that name the target, for error messages.
    :param folder: the folder of the agent file; None: none is searched.
    :raises PartError: if the module cannot be imported, has no such object, or lies beside the agent file where another
        user could change it.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise PartError(f"{where}: {target!r} is not of the form 'package.module:object'")
    try:
        module = _import_module(module_name, folder)
    except PartError as error:
        raise PartError(f"{where}: {target!r}: {error}") from error
    except Exception as error:
        raise PartError(
            f"{where}: {target!r} does not import ({type(error).__name__}: {error}); {_advise(error, folder)}"
        ) from error
    target_object: Any = module
    for name in attribute.split("."):
        if not hasattr(target_object, name):
            public_names = [
                name
                for name, value in vars(module).items()
                if getattr(value, "__module__", None) == module.__name__ and name[0] != "_"
            ]
            available = ", ".join(public_names) or "nothing"
            raise PartError(f"{where}: {module_name!r} has no {attribute!r}; it has: {available}")
        target_object = getattr(target_object, name)
    return target_object


def _import_module(name: str, folder: Path | None) -> ModuleType:
    if folder is not None and find_beside(folder, name) is not None:
        return import_beside(folder, name)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _advise(error: Exception, folder: Path | None) -> str:
    """What to do about a module that does not import."""
    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if missing and folder is not None and find_beside(folder, missing) is not None:
        return f"files beside an agent file import each other with a dot: `from . import {missing}`"
    beside = "" if folder is None else "put the module beside the agent file, or "
    return f"{beside}run from the folder that contains the module, and install its dependencies"
