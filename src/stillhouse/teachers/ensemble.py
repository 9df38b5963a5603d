"""The agent's teachers as one: fit those that learn, store and load all of them, and average their answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, Leaf, TeacherSection, leaves
from stillhouse.errors import LeakageError, PartError
from stillhouse.files import atomic_folder, write_atomic
from stillhouse.parts import HasTextEncoder, ModelStore, Teacher, TextEncoderState
from stillhouse.records import ModelRef, TeacherChange, TeacherRef, TeacherWeights, Window, short_id
from stillhouse.teachers import mixture_weights
from stillhouse.teachers.answers import Allowance, Array, Features
from stillhouse.teachers.kinds import (
    REFRESH_ADVICE,
    Member,
    MemberContext,
    TeacherMoment,
    current_version,
    describe,
    new_teacher,
    open_member,
)
from stillhouse.teachers.persistence import content_hash
from stillhouse.teachers.user_code import call_user_code

__all__ = [
    "Ensemble",
    "Member",
    "find_changes",
    "fit",
    "fit_members",
    "load",
    "make_teacher",
    "read_reference",
    "read_weights",
    "reweigh",
]


class Ensemble:
    """The agent's teachers and their weighted mean. :func:`load` makes it from stored teachers.

    >>> from stillhouse.config import load as load_agent
    >>> from stillhouse.teachers.answers import wrap_predict
    >>> config = load_agent("flights")
    >>> optimist = wrap_predict("optimist", config.actions, lambda rows: [[1.0, 0.0]] * len(rows))
    >>> cautious = wrap_predict("cautious", config.actions, lambda rows: [[0.6, 0.4]] * len(rows))
    >>> members = [Member("optimist", 0.25, optimist, "v1"), Member("cautious", 0.75, cautious, "v1")]
    >>> Ensemble(config, members, fit_window=None, version="v1").predict_proba(pd.DataFrame({"temp": [20.0]}))
    array([[0.7, 0.3]])

    :param fit_window: the window whose labels the fitted members have seen; they are not asked about its rows. None:
        no member is fitted.
    :param version: content hash, under which the mean answers are stored.
    :param local: whether all members run in this process.
    :param mixture: learned from outcomes; None: each member counts for its ``share``.
    :param unweighted_version: the version without the weights; the members' own answers are stored under it.
    """

    def __init__(
        self,
        config: AgentConfig,
        members: Sequence[Member],
        fit_window: Window | None,
        version: str,
        local: bool = True,
        mixture: TeacherWeights | None = None,
        unweighted_version: str | None = None,
    ) -> None:
        self.config = config
        self.members = tuple(members)
        self.fit_window = fit_window
        self.version = version
        self.local = local
        self.mixture = mixture
        self.unweighted_version = unweighted_version or version

    def member_version(self, member: Member) -> str:
        """The version under which the member's own answers are stored; it does not depend on the weights."""
        if len(self.members) == 1:
            return self.version
        return member.version or short_id(self.unweighted_version, member.name)

    def member_shares(self, rows: pd.DataFrame) -> Array:
        """Share of each member in the mean of each row, float64 ``[n, M]``; rows sum to 1."""
        if self.mixture is None:
            return np.tile([member.share for member in self.members], (len(rows), 1))
        return mixture_weights.row_shares(self.mixture, rows) @ self.shares_within(self.mixture.teachers)

    def with_weights(self, mixture: TeacherWeights, version: str) -> Ensemble:
        """The same members under other weights, as another version of the teacher."""
        reweighted = copy(self)
        reweighted.mixture, reweighted.version = mixture, version
        return reweighted

    def shares_within(self, names: Sequence[str]) -> Array:
        """Share of each member within the teacher, or the ensemble with fixed weights, that has one learned weight.

        :param names: of those teachers and ensembles, U of them.
        :returns: float64 ``[U, M]``; rows sum to 1.
        """
        members = [member.name for member in self.members]
        belongs = np.array([[member == name or member.startswith(f"{name}.") for member in members] for name in names])
        shares = belongs * np.array([member.share for member in self.members])
        normalised: Array = shares / shares.sum(axis=1, keepdims=True)
        return normalised

    def predict_proba(self, rows: pd.DataFrame) -> Array:
        """Raw rows to float64 ``[n, K]``: the weighted mean of the members' probabilities, without a budget.

        :raises PartError: if a member has no usable answer to a row.
        """
        mean = np.zeros((len(rows), len(self.config.actions)))
        for member, share in zip(self.members, self.member_shares(rows).T, strict=True):
            answers = member.answer(rows, Allowance())
            if np.isnan(answers.probabilities).any():
                why = answers.stop_reason or next(iter(answers.refused.values()), "it gave none")
                raise PartError(f"teacher {member.name!r} has no usable answer: {why}")
            mean += share[:, None] * answers.probabilities
        return mean

    def ask(self, rows: pd.DataFrame) -> Array:
        """:meth:`predict_proba` for observations (with ``observed_at``) outside the fit window.

        :raises LeakageError: if a row lies in the window whose labels the teachers have seen.
        """
        self.require_unseen(rows)
        return self.predict_proba(rows)

    def text_encoder(self) -> TextEncoderState | None:
        """The text encoder of the member with the largest share that offers one; a text student may start from it.

        :raises PartError: if the member's method fails or returns something else.
        """
        for member in sorted(self.members, key=lambda member: -member.share):
            user_object = member.user_object() if member.user_object is not None else None
            if isinstance(user_object, HasTextEncoder):
                return _read_text_encoder(user_object, _where(self.config, member.name))
        return None

    def features(self, rows: pd.DataFrame) -> Features | None:
        """Features of ``rows`` from the member that gives them, float32 ``[n, D]``; None if none does."""
        for member in self.members:
            if member.has_features:
                return member.answer(rows, Allowance()).features
        return None

    def overrules(self, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which rows have an outcome that a member says is of no use any more, bool ``[n]``.

        :raises PartError: if a member's method fails or returns something else.
        """
        overruled = np.zeros(len(rows), dtype=bool)
        for member in self.members:
            method = getattr(member.user_object() if member.user_object else None, "overrules", None)
            if method is not None and len(rows):
                where = f"{_where(self.config, member.name)}: overrules()"
                answer = np.asarray(call_user_code(where, None, method, rows))
                if answer.shape != (len(rows),) or answer.dtype != np.bool_:
                    raise PartError(f"{where} gives {answer.dtype} {list(answer.shape)}, not one bool for each row")
                overruled |= answer
        return overruled

    def in_fit_window(self, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which rows lie in the window whose labels the teachers have seen, bool ``[n]``."""
        if self.fit_window is None:
            return np.zeros(len(rows), dtype=bool)
        times = rows["observed_at"]
        mask: np.ndarray[Any, np.dtype[np.bool_]] = (
            (times >= self.fit_window.start) & (times < self.fit_window.end)
        ).to_numpy(dtype=bool)
        return mask

    def require_unseen(self, rows: pd.DataFrame) -> None:
        """:raises LeakageError: if a row lies in the window whose labels the teachers have seen."""
        if (seen := self.in_fit_window(rows)).any():
            raise LeakageError(
                f"{int(seen.sum())} of {len(rows)} rows lie in {self.fit_window}, whose outcomes the teachers of "
                f"{self.config.agent!r} were fitted on; ask for cross-fitted knowledge of that window instead"
            )


def fit(
    config: AgentConfig,
    rows: pd.DataFrame,
    window: Window,
    folder: Path,
    models: ModelStore | None = None,
    *,
    now: datetime | None = None,
) -> TeacherRef:
    """Fit all teachers that learn, and write all teachers to ``folder``.

    :param rows: labelled, with ``outcome``; −1 where it is unknown.
    :param models: loads the models of teachers of kind ``mlflow``.
    :param now: time of the refresh; None: the end of the window.
    :raises PartError: if a teacher cannot be made, fitted or saved.
    """
    with atomic_folder(folder) as partial:
        fitted = fit_members(config, rows)
        for leaf, teacher in fitted:
            (partial / leaf.name).mkdir()
            call_user_code(f"saving teacher {leaf.name!r}", None, teacher.save, partial / leaf.name)
        moment = TeacherMoment(now=now or window.end, training_end=window.end)
        entries = [
            _make_entry(MemberContext(config, leaf, partial, models, moment)) for leaf in leaves(config.teachers)
        ]
        bytes_elsewhere = {leaf.name: int(getattr(teacher, "bytes_elsewhere", 0)) for leaf, teacher in fitted}
        for entry in entries:
            if size := bytes_elsewhere.get(entry["name"]):
                entry["bytes_elsewhere"] = size
        description = {
            "agent": config.agent,
            "version": _version(partial, leaves(config.teachers), entries),
            "parts": entries,
            "fitted": window.model_dump(mode="json") if fitted else None,
            "moment": moment.model_dump(mode="json"),
        }
        (partial / "teacher.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    return read_reference(folder)


def fit_members(config: AgentConfig, rows: pd.DataFrame) -> list[tuple[Leaf, Teacher]]:
    """The teachers that learn, fitted on the rows with a label (``outcome`` ≥ 0).

    :raises PartError: if one cannot be made, or its fit fails or takes too long.
    """
    rows, fitted = rows[rows["outcome"] >= 0], []
    for leaf in leaves(config.teachers):
        if leaf.teacher.is_fitted:
            teacher = make_teacher(config, leaf.teacher, leaf.name)
            what = f"fitting teacher {leaf.name!r} on {len(rows)} rows"
            call_user_code(what, leaf.teacher.call_timeout, teacher.fit, rows, rows["outcome"].to_numpy())
            fitted.append((leaf, teacher))
    return fitted


def make_teacher(config: AgentConfig, teacher: TeacherSection, name: str = "") -> Teacher:
    """An unfitted teacher as the agent file describes it.

    :param name: with the names of its ensembles, for errors.
    :raises PartError: if it does not import, its constructor fails, or it lacks a method.
    """
    return new_teacher(teacher, _where(config, name or teacher.name), config)


def read_reference(folder: Path, model: ModelRef | None = None) -> TeacherRef:
    """Version, fit window and size of the teacher in ``folder``.

    :param model: the MLflow model that holds the teacher.
    """
    description = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
    return TeacherRef(
        version=_weighted_version(description["version"], read_weights(folder)),
        folder=str(folder),
        fitted=_fit_window(description),
        features=next((entry["version"] for entry in description["parts"] if entry.get("features")), None),
        bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        + sum(entry.get("bytes_elsewhere", 0) for entry in description["parts"]),
        model=model,
    )


def read_weights(folder: Path) -> TeacherWeights | None:
    """The learned weights of the teacher in ``folder``; None if it has none."""
    file = folder / "weights.json"
    return TeacherWeights.model_validate_json(file.read_bytes()) if file.exists() else None


def reweigh(teacher: TeacherRef, mixture: TeacherWeights, folder: Path) -> TeacherRef:
    """Write the same members with other weights to ``folder``, as another version of the teacher.

    If the process is killed, the folder holds either the previous weights or the new ones.
    """
    if Path(teacher.folder) != folder:
        with atomic_folder(folder) as partial:
            shutil.copytree(teacher.folder, partial, dirs_exist_ok=True)
    write_atomic(folder / "weights.json", mixture.model_dump_json())
    return read_reference(folder)


def load(folder: Path, config: AgentConfig, models: ModelStore | None = None) -> Ensemble:
    """Read what :func:`fit` wrote. The agent file alone decides which class reads which files.

    :param models: loads the models of teachers of kind ``mlflow``.
    :raises PartError: if the agent file does not name a stored teacher, or describes it otherwise now.
    """
    description = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
    by_name = {leaf.name: leaf for leaf in leaves(config.teachers)}
    members, total = [], sum(entry["weight"] for entry in description["parts"])
    for entry in description["parts"]:
        if entry["name"] not in by_name:
            raise PartError(
                f"the stored teacher has a part {entry['name']!r} that {config.file} does not name; "
                f"it names {sorted(by_name)}. Refresh with a newly fitted teacher, or restore the agent file"
            )
        member = _open(MemberContext(config, by_name[entry["name"]], folder, models), entry)
        members.append(replace(member, share=entry["weight"] / total))
    mixture, version = read_weights(folder), description["version"]
    return Ensemble(
        config,
        members,
        _fit_window(description),
        _weighted_version(version, mixture),
        local=not any(by_name[entry["name"]].teacher.is_remote for entry in description["parts"]),
        mixture=mixture,
        unweighted_version=version,
    )


def find_changes(
    folder: Path, config: AgentConfig, now: datetime, models: ModelStore | None = None
) -> tuple[TeacherChange, ...]:
    """The teachers that are another version at ``now`` than those stored in ``folder``, by the same agent file.

    Each teacher that is not fitted is made again, for the training rows of the stored one; no teacher is asked. Only
    kinds that can change by themselves are compared: rules in a file that somebody has edited, say.
    """
    description = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
    stored, changes = {entry["name"]: entry for entry in description["parts"]}, []
    moment = description.get("moment")  # teachers of an earlier version of stillhouse have none
    if moment is not None:
        moment = TeacherMoment(now=now, training_end=moment["training_end"])
    for leaf in leaves(config.teachers):
        before = stored.get(leaf.name, {}).get("version")
        if before is None or leaf.teacher.is_fitted:
            continue
        version = current_version(leaf.teacher, MemberContext(config, leaf, folder, models, moment))
        if version is not None and version != before:
            changes.append(TeacherChange(teacher=leaf.name, before=before, now=version))
    return tuple(changes)


# --------------------------------------------------------------------------- inside


def _make_entry(context: MemberContext) -> dict[str, Any]:
    """The entry of one teacher in ``teacher.json``: it names no Python to import and no address to call."""
    leaf = context.leaf
    entry: dict[str, Any] = {"name": leaf.name, "weight": leaf.share}
    if leaf.teacher.gives_features:
        entry["features"] = True
    return entry | ({"folder": leaf.name} if leaf.teacher.is_fitted else describe(leaf.teacher, context))


def _open(context: MemberContext, entry: dict[str, Any]) -> Member:
    """:raises PartError: if the teacher was fitted and is not to learn now, or the reverse."""
    leaf = context.leaf
    if leaf.teacher.is_fitted != ("version" not in entry):
        raise PartError(
            f"{context.where}.learns: is {leaf.teacher.is_fitted}, but was not when this teacher was made. "
            f"{REFRESH_ADVICE}"
        )
    return open_member(leaf.teacher, context, entry)


def _read_text_encoder(teacher: HasTextEncoder, where: str) -> TextEncoderState:
    try:
        encoder = teacher.text_encoder()
    except Exception as error:
        raise PartError(f"{where}: text_encoder fails: {type(error).__name__}: {error}") from error
    if not isinstance(encoder, TextEncoderState):
        raise PartError(
            f"{where}: text_encoder gives a {type(encoder).__name__}, "
            f"not a stillhouse.parts.{TextEncoderState.__name__}"
        )
    return encoder


def _version(folder: Path, teachers: Sequence[Leaf], entries: list[dict[str, Any]]) -> str:
    """Content hash of all teachers. A single unfitted teacher keeps its own, so its answers are not stored twice."""
    if len(entries) == 1 and "version" in entries[0]:
        return str(entries[0]["version"])
    identities = [
        (leaf.name, getattr(leaf.teacher, "target", "") if leaf.teacher.is_fitted else entry["version"], leaf.share)
        for leaf, entry in zip(teachers, entries, strict=True)
    ]
    return content_hash(folder, json.dumps(identities))


def _weighted_version(version: str, mixture: TeacherWeights | None) -> str:
    """The version of a mean: other weights give other answers."""
    if mixture is None:
        return version
    decisive = {"teachers", "start", "columns", "column_shares", "everywhere", "slices"}
    return short_id(version, mixture.model_dump_json(include=decisive))


def _where(config: AgentConfig, name: str) -> str:
    """The teacher as an error names it."""
    return f"{config.file}: teachers.{name}"


def _fit_window(description: dict[str, Any]) -> Window | None:
    fitted = description["fitted"]
    return Window.model_validate(fitted) if fitted else None
