"""The agent's teachers as one: those that learn are fitted on the past and cross-fitted, the others are asked."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, EndpointTeacher, Leaf, MlflowTeacher, ModuleTeacher, PythonTeacher, leaves
from stillhouse.errors import LeakageError, PartError
from stillhouse.parts import ModelStore, OffersText, Teacher, TextInitial, resolve
from stillhouse.records import ModelRef, TeacherRef, Window, short_id
from stillhouse.teachers import endpoint, mlflow_model, module
from stillhouse.teachers.answers import Allowance, Answering, Array, checked, in_process

__all__ = [
    "Ensemble",
    "Member",
    "cross_fit",
    "cross_fit_blocks",
    "fit",
    "load",
    "new_member",
    "reference",
    "without_block",
]

Progress = Callable[[str], None]

_CHUNK = 5000  # rows after which what a teacher in this process has said is kept


@dataclass(frozen=True)
class Member:
    """One of the teachers.

    :param share: its part of the mean, in 0…1.
    :param version: under which its own knowledge is kept; None for one that is fitted: it is new with each fit.
    :param chunk: rows after which what it has said is kept.
    :param part: gives the user's object behind it, where it runs in this process.
    """

    name: str
    share: float
    answer: Answering
    version: str | None = None
    chunk: int = _CHUNK
    part: Callable[[], object] | None = None


class Ensemble:
    """The agent's teachers and their weighted mean.

    :param fitted: the window whose outcomes the fitted ones have seen, and about whose rows they are not asked; None
        where none of them can be fitted.
    :param version: content hash, under which their knowledge is kept.
    :param local: whether all of them run in this process.
    """

    def __init__(
        self, config: AgentConfig, members: Sequence[Member], fitted: Window | None, version: str, local: bool = True
    ) -> None:
        self.config = config
        self.members = tuple(members)
        self.fitted = fitted
        self.version = version
        self.local = local

    def predict_proba(self, rows: pd.DataFrame) -> Array:
        """Raw rows to float64 ``[n, K]``: the weighted mean of the members' probabilities, whatever it costs.

        :raises PartError: if a member has no usable answer to a row.
        """
        mean = np.zeros((len(rows), len(self.config.actions)))
        for member in self.members:
            answers = member.answer(rows, Allowance())
            if np.isnan(answers.probabilities).any():
                why = answers.stopped or next(iter(answers.refused.values()), "it gave none")
                raise PartError(f"teacher {member.name!r} has no usable answer: {why}")
            mean += member.share * answers.probabilities
        return mean

    def ask(self, rows: pd.DataFrame) -> Array:
        """:meth:`predict_proba` for observations (with ``observed_at``) that the teachers were not fitted on.

        :raises LeakageError: if a row lies in the window whose outcomes the teachers have seen.
        """
        self.refuse_seen(rows)
        return self.predict_proba(rows)

    def text_encoder(self) -> TextInitial | None:
        """What a text student may begin with: the encoder of the weightiest member that offers one.

        :raises PartError: if that fails, or is none.
        """
        for member in sorted(self.members, key=lambda member: -member.share):
            offers = member.part() if member.part is not None else None
            if isinstance(offers, OffersText):
                return _text_encoder(offers, _where(self.config, member.name))
        return None

    def seen(self, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Of which ``rows`` the teachers have seen the outcomes, bool ``[n]``."""
        if self.fitted is None:
            return np.zeros(len(rows), dtype=bool)
        times = rows["observed_at"]
        inside: np.ndarray[Any, np.dtype[np.bool_]] = (
            (times >= self.fitted.start) & (times < self.fitted.end)
        ).to_numpy(dtype=bool)
        return inside

    def refuse_seen(self, rows: pd.DataFrame) -> None:
        """:raises LeakageError: if a row lies in the window whose outcomes the teachers have seen."""
        if (seen := self.seen(rows)).any():
            raise LeakageError(
                f"{int(seen.sum())} of {len(rows)} rows lie in {self.fitted}, whose outcomes the teachers of "
                f"{self.config.agent!r} were fitted on; ask for cross-fitted knowledge of that window instead"
            )


def fit(
    config: AgentConfig, rows: pd.DataFrame, window: Window, folder: Path, models: ModelStore | None = None
) -> TeacherRef:
    """Fit all teachers that learn on labelled ``rows`` (with ``outcome``), and write all to ``folder``.

    :param models: where teachers of kind ``mlflow`` come from.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fitted = _fit_members(config, rows)
    for leaf, teacher in fitted:
        (partial / leaf.name).mkdir()
        teacher.save(partial / leaf.name)
    parts = [_part(config, leaf, models) for leaf in leaves(config.teachers)]
    description = {
        "agent": config.agent,
        "version": _version(partial, leaves(config.teachers), parts),
        "parts": parts,
        "fitted": window.model_dump(mode="json") if fitted else None,
    }
    (partial / "teacher.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return reference(folder)


def reference(folder: Path, model: ModelRef | None = None) -> TeacherRef:
    """What is to be known about the teacher in ``folder``, and where MLflow keeps it."""
    description = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
    return TeacherRef(
        version=description["version"],
        folder=str(folder),
        fitted=_window(description),
        bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        model=model,
    )


def cross_fit(
    config: AgentConfig,
    rows: pd.DataFrame,
    progress: Progress = lambda text: None,
    wanted: np.ndarray[Any, np.dtype[np.bool_]] | None = None,
) -> dict[str, Array]:
    """What the teachers that learn say about labelled ``rows`` whose outcomes they have not seen, by their names.

    The rows, ordered by time, are cut into ``distillation.folds`` contiguous blocks; each block is labelled by
    teachers fitted on the others (cross-fitting; Chernozhukov et al. 2018, "Double/debiased machine learning",
    §3). Contiguous, because neighbours in time share their weather: a random cut would leak.

    :param wanted: bool ``[n]``, the rows to be spoken about; None: all.
    :returns: float64 ``[n, K]`` each, NaN where not wanted.
    """
    folds = config.distillation.folds
    wanted = np.ones(len(rows), dtype=bool) if wanted is None else wanted
    blocks = cross_fit_blocks(config, rows)
    said: dict[str, Array] = {}
    for number in range(folds):
        asked = np.flatnonzero((blocks == number) & wanted)
        if len(asked):
            for leaf, teacher in _fit_members(config, rows[blocks != number]):
                answer = said.setdefault(leaf.name, np.full((len(rows), len(config.actions)), np.nan))
                answer[asked] = checked(leaf.name, teacher.predict_proba(rows.iloc[asked]), len(asked), config.actions)
        progress(f"teacher, block {number + 1} of {folds}")
    return said


def cross_fit_blocks(config: AgentConfig, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The time block of each row, ``[n]``, as :func:`cross_fit` cuts them."""
    order = np.argsort(rows["observed_at"].to_numpy(), kind="stable")
    blocks = np.empty(len(rows), dtype=np.int64)
    for number, block in enumerate(np.array_split(order, config.distillation.folds)):
        blocks[block] = number
    return blocks


def without_block(teacher: Ensemble, rows: pd.DataFrame, outside: np.ndarray[Any, np.dtype[np.bool_]]) -> Ensemble:
    """The same teachers, those that learn fitted on the labelled ``rows`` outside of a block alone.

    What it says is kept under the version of ``teacher``, as cross-fitted knowledge is.

    :param outside: which rows it may be fitted on, bool ``[n]``.
    """
    fitted = {leaf.name: made for leaf, made in _fit_members(teacher.config, rows[outside])}
    members = [
        replace(member, answer=in_process(member.name, teacher.config.actions, fitted[member.name].predict_proba))
        if member.name in fitted
        else member
        for member in teacher.members
    ]
    other = copy(teacher)
    other.members, other.fitted = tuple(members), None
    return other


def load(folder: Path, config: AgentConfig, models: ModelStore | None = None) -> Ensemble:
    """Read what :func:`fit` wrote. Which class reads which part is said by the agent file alone.

    :param models: where teachers of kind ``mlflow`` come from.
    :raises PartError: if the agent file has no teacher of a stored part's name, or describes it otherwise now.
    """
    description = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
    named = {leaf.name: leaf for leaf in leaves(config.teachers)}
    members, total = [], sum(part["weight"] for part in description["parts"])
    for part in description["parts"]:
        if part["name"] not in named:
            raise PartError(
                f"the stored teacher has a part {part['name']!r} that agents/{config.agent}.yaml does not name; "
                f"it names {sorted(named)}. Refresh with a newly fitted teacher, or restore the agent file"
            )
        member = _member(config, named[part["name"]], part, folder, models)
        members.append(replace(member, share=part["weight"] / total))
    local = not any(isinstance(named[part["name"]].teacher, EndpointTeacher) for part in description["parts"])
    return Ensemble(config, members, _window(description), description["version"], local)


def new_member(config: AgentConfig, teacher: PythonTeacher, name: str = "") -> Teacher:
    """An unfitted teacher as the agent file describes it.

    :raises PartError: if it does not import, cannot be made, or lacks a method.
    """
    where = _where(config, name or teacher.name)
    kind = resolve(teacher.target, where=where)
    try:
        made = kind(**teacher.settings)
    except Exception as error:
        raise PartError(
            f"{where}: {teacher.target} cannot be made with settings {teacher.settings}: "
            f"{type(error).__name__}: {error}"
        ) from error
    lacking = [name for name in ("fit", "predict_proba", "save", "load") if not callable(getattr(made, name, None))]
    if lacking:
        raise PartError(f"{where}: {teacher.target} lacks the methods {lacking} of stillhouse.parts.Teacher")
    fresh: Teacher = made
    return fresh


# --------------------------------------------------------------------------- members


def _fit_members(config: AgentConfig, rows: pd.DataFrame) -> list[tuple[Leaf, Teacher]]:
    """Those that learn, fitted on the rows whose outcome is known."""
    rows, made = rows[rows["outcome"] >= 0], []
    for leaf in leaves(config.teachers):
        if isinstance(leaf.teacher, PythonTeacher):
            teacher = new_member(config, leaf.teacher, leaf.name)
            teacher.fit(rows, rows["outcome"].to_numpy())
            made.append((leaf, teacher))
    return made


def _part(config: AgentConfig, leaf: Leaf, models: ModelStore | None) -> dict[str, Any]:
    """What is stored about a member: no Python to import, no address to ask."""
    part: dict[str, Any] = {"name": leaf.name, "weight": leaf.share}
    if isinstance(leaf.teacher, PythonTeacher):
        return part | {"folder": leaf.name}
    if isinstance(leaf.teacher, MlflowTeacher):
        part["pinned"] = _store(config, leaf, models).pin(leaf.teacher.uri)
    return part | {"version": _own_version(config, leaf, part.get("pinned", ""))}


def _member(config: AgentConfig, leaf: Leaf, part: dict[str, Any], folder: Path, models: ModelStore | None) -> Member:
    name, teacher, actions, where = leaf.name, leaf.teacher, config.actions, _where(config, leaf.name)
    if isinstance(teacher, PythonTeacher):
        kind = resolve(teacher.target, where=f"agents/{config.agent}.yaml: teachers")
        loaded = kind.load(folder / part["folder"])
        return Member(name, leaf.share, in_process(name, actions, loaded.predict_proba), part=lambda: loaded)
    pinned = part.get("pinned", "")
    if part["version"] != _own_version(config, leaf, pinned):
        raise PartError(
            f"{where}: is described otherwise than when this teacher was made, so what it says is other knowledge. "
            "Refresh with teacher=fit, or restore the agent file"
        )
    if isinstance(teacher, EndpointTeacher):
        asked = endpoint.Endpoint(config, name, teacher)
        return Member(name, leaf.share, asked.answer, part["version"], chunk=asked.chunk)
    if isinstance(teacher, MlflowTeacher):
        columns, store = list(config.observations.columns), _store(config, leaf, models)
        predict = mlflow_model.predictor(teacher, pinned, store, actions, columns, where)
    else:
        predict = module.predictor(teacher, where)
        made = partial(module.make, teacher, where)
        return Member(name, leaf.share, in_process(name, actions, predict), part["version"], part=made)
    return Member(name, leaf.share, in_process(name, actions, predict), part["version"])


def _text_encoder(teacher: OffersText, where: str) -> TextInitial:
    try:
        found = teacher.text_encoder()
    except Exception as error:
        raise PartError(f"{where}: text_encoder fails: {type(error).__name__}: {error}") from error
    if not isinstance(found, TextInitial):
        raise PartError(f"{where}: text_encoder gives a {type(found).__name__}, not a stillhouse.parts.TextInitial")
    return found


def _own_version(config: AgentConfig, leaf: Leaf, pinned: str) -> str:
    """Of a member that is not fitted: all of its description that decides what it says, and its weights."""
    teacher = leaf.teacher
    if isinstance(teacher, MlflowTeacher) and not mlflow_model.pinned_like(teacher.uri, pinned):
        raise PartError(f"{_where(config, leaf.name)}: the stored teacher has {pinned!r}, which is not {teacher.uri!r}")
    unsaid = {"name", "weight", "uri"} | (endpoint.UNSAID if isinstance(teacher, EndpointTeacher) else set())
    weights = module.fingerprint(teacher, _where(config, leaf.name)) if isinstance(teacher, ModuleTeacher) else ""
    return short_id(teacher.model_dump_json(exclude=unsaid), config.actions, pinned, weights)


def _version(folder: Path, named: Sequence[Leaf], parts: list[dict[str, Any]]) -> str:
    """A single teacher that is not fitted has its own version, so that what it said is not kept twice."""
    if len(parts) == 1 and "version" in parts[0]:
        return str(parts[0]["version"])
    said = [
        (leaf.name, leaf.teacher.target if isinstance(leaf.teacher, PythonTeacher) else part["version"], leaf.share)
        for leaf, part in zip(named, parts, strict=True)
    ]
    return _content_hash(folder, said)


def _content_hash(folder: Path, parts: list[tuple[str, str, float]]) -> str:
    """Of all that decides what the teachers say: their files, which class reads them, and their weights."""
    digest = hashlib.sha256(json.dumps(parts).encode())
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _store(config: AgentConfig, leaf: Leaf, models: ModelStore | None) -> ModelStore:
    if models is None:
        raise PartError(
            f"{_where(config, leaf.name)}: comes from MLflow and can be asked by the flows only; "
            "load the model by its own address"
        )
    return models


def _where(config: AgentConfig, name: str) -> str:
    return f"agents/{config.agent}.yaml: teachers.{name}"


def _window(description: dict[str, Any]) -> Window | None:
    fitted = description["fitted"]
    return Window.model_validate(fitted) if fitted else None
