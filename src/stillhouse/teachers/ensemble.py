"""The agent's teachers as one: those that learn are fitted on the past and cross-fitted, the others are asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, Leaf, TeacherSection, leaves
from stillhouse.errors import LeakageError, PartError
from stillhouse.files import atomic_folder, write_atomic
from stillhouse.parts import HasTextEncoder, ModelStore, Teacher, TextEncoderState
from stillhouse.records import ModelRef, TeacherRef, TeacherWeights, Window, short_id
from stillhouse.teachers import weighing
from stillhouse.teachers.answers import Allowance, Array, Features, checked, in_process
from stillhouse.teachers.calling import call
from stillhouse.teachers.kinds import RENEW, Member, MemberContext, describe, new_teacher, open_member
from stillhouse.teachers.ready import content_hash

__all__ = [
    "CrossFit",
    "Ensemble",
    "Member",
    "cross_fit",
    "cross_fit_blocks",
    "fit",
    "kept_weights",
    "load",
    "new_member",
    "reference",
    "reweigh",
    "without_block",
]

Progress = Callable[[str], None]


class Ensemble:
    """The agent's teachers and their weighted mean.

    :param fitted: the window whose outcomes the fitted ones have seen, and about whose rows they are not asked; None
        where none of them can be fitted.
    :param version: content hash, under which their knowledge is kept.
    :param local: whether all of them run in this process.
    :param weights: learned from evidence; None: each member counts for its ``share``.
    :param before_weights: the version without the weights, under which the members' own knowledge is kept.
    """

    def __init__(
        self,
        config: AgentConfig,
        members: Sequence[Member],
        fitted: Window | None,
        version: str,
        local: bool = True,
        weights: TeacherWeights | None = None,
        before_weights: str | None = None,
    ) -> None:
        self.config = config
        self.members = tuple(members)
        self.fitted = fitted
        self.version = version
        self.local = local
        self.weights = weights
        self.before_weights = before_weights or version

    def own_version(self, member: Member) -> str:
        """Under which the member's own answers are kept, however it is weighted."""
        if len(self.members) == 1:
            return self.version
        return member.version or short_id(self.before_weights, member.name)

    def shares(self, rows: pd.DataFrame) -> Array:
        """What each member counts for in the mean about each of ``rows``, float64 ``[n, M]``, rows sum to 1."""
        if self.weights is None:
            return np.tile([member.share for member in self.members], (len(rows), 1))
        return weighing.shares(self.weights, rows) @ self.within(self.weights.teachers)

    def with_weights(self, weights: TeacherWeights, version: str) -> Ensemble:
        """The same members under other weights, as another version of the teacher."""
        other = copy(self)
        other.weights, other.version = weights, version
        return other

    def within(self, units: Sequence[str]) -> Array:
        """Share of each member within the teacher or ensemble that has one weight, float64 ``[len(units), M]``."""
        names = [member.name for member in self.members]
        inside = np.array([[name == unit or name.startswith(f"{unit}.") for name in names] for unit in units])
        parts = inside * np.array([member.share for member in self.members])
        shares: Array = parts / parts.sum(axis=1, keepdims=True)
        return shares

    def predict_proba(self, rows: pd.DataFrame) -> Array:
        """Raw rows to float64 ``[n, K]``: the weighted mean of the members' probabilities, whatever it costs.

        :raises PartError: if a member has no usable answer to a row.
        """
        mean = np.zeros((len(rows), len(self.config.actions)))
        for member, share in zip(self.members, self.shares(rows).T, strict=True):
            answers = member.answer(rows, Allowance())
            if np.isnan(answers.probabilities).any():
                why = answers.stopped or next(iter(answers.refused.values()), "it gave none")
                raise PartError(f"teacher {member.name!r} has no usable answer: {why}")
            mean += share[:, None] * answers.probabilities
        return mean

    def ask(self, rows: pd.DataFrame) -> Array:
        """:meth:`predict_proba` for observations (with ``observed_at``) that the teachers were not fitted on.

        :raises LeakageError: if a row lies in the window whose outcomes the teachers have seen.
        """
        self.refuse_seen(rows)
        return self.predict_proba(rows)

    def text_encoder(self) -> TextEncoderState | None:
        """What a text student may begin with: the encoder of the weightiest member that offers one.

        :raises PartError: if that fails, or is none.
        """
        for member in sorted(self.members, key=lambda member: -member.share):
            offers = member.part() if member.part is not None else None
            if isinstance(offers, HasTextEncoder):
                return _text_encoder(offers, _where(self.config, member.name))
        return None

    def features(self, rows: pd.DataFrame) -> Features | None:
        """What the member that gives features makes of ``rows``, float32 ``[n, D]``; None where none does."""
        for member in self.members:
            if member.features:
                return member.answer(rows, Allowance()).features
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
    with atomic_folder(folder) as partial:
        fitted = _fit_members(config, rows)
        for leaf, teacher in fitted:
            (partial / leaf.name).mkdir()
            call(f"saving teacher {leaf.name!r}", None, teacher.save, partial / leaf.name)
        parts = [_part(MemberContext(config, leaf, partial, models)) for leaf in leaves(config.teachers)]
        description = {
            "agent": config.agent,
            "version": _version(partial, leaves(config.teachers), parts),
            "parts": parts,
            "fitted": window.model_dump(mode="json") if fitted else None,
        }
        (partial / "teacher.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    return reference(folder)


def reference(folder: Path, model: ModelRef | None = None) -> TeacherRef:
    """What is to be known about the teacher in ``folder``, and where MLflow keeps it."""
    description = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
    return TeacherRef(
        version=_weighted(description["version"], kept_weights(folder)),
        folder=str(folder),
        fitted=_window(description),
        features=next((part["version"] for part in description["parts"] if part.get("features")), None),
        bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        + sum(part.get("bytes_elsewhere", 0) for part in description["parts"]),
        model=model,
    )


def kept_weights(folder: Path) -> TeacherWeights | None:
    """The learned weights of the teacher in ``folder``, if it has any."""
    file = folder / "weights.json"
    return TeacherWeights.model_validate_json(file.read_bytes()) if file.exists() else None


def reweigh(teacher: TeacherRef, weights: TeacherWeights, folder: Path) -> TeacherRef:
    """The same teachers under other weights, in ``folder``: another version, whose members are the same.

    Killed at any moment it leaves the teacher with its weights of before, or with the new ones.
    """
    if Path(teacher.folder) != folder:
        with atomic_folder(folder) as partial:
            shutil.copytree(teacher.folder, partial, dirs_exist_ok=True)
    write_atomic(folder / "weights.json", weights.model_dump_json())
    return reference(folder)


class CrossFit:
    """The teachers that learn, fitted once on all time blocks of labelled rows but one, for each block.

    The rows, ordered by time, are cut into ``distillation.folds`` contiguous blocks; about each block speak teachers
    fitted on the others (cross-fitting; Chernozhukov et al. 2018, "Double/debiased machine learning", §3). Contiguous,
    because neighbours in time share their weather: a random cut would leak. A block's teachers are fitted when they
    are first asked, and kept: a refresh that asks about observed and about made-up rows fits each block once.

    :param rows: labelled (with ``outcome``, −1 where it is not known: nothing is fitted on those).
    """

    def __init__(self, config: AgentConfig, rows: pd.DataFrame) -> None:
        self.config = config
        self.blocks = cross_fit_blocks(config, rows)
        self._rows = rows
        self._fitted: dict[int, list[tuple[Leaf, Teacher]]] = {}

    def without(self, block: int) -> list[tuple[Leaf, Teacher]]:
        """The teachers that have not seen the outcomes of this block."""
        if block not in self._fitted:
            self._fitted[block] = _fit_members(self.config, self._rows[self.blocks != block])
        return self._fitted[block]


def cross_fit(
    config: AgentConfig,
    rows: pd.DataFrame,
    progress: Progress = lambda text: None,
    wanted: np.ndarray[Any, np.dtype[np.bool_]] | None = None,
    cross: CrossFit | None = None,
) -> dict[str, Array]:
    """What the teachers that learn say about labelled ``rows`` whose outcomes they have not seen, by their names.

    Each time block is labelled by teachers fitted on the others (:class:`CrossFit`).

    :param wanted: bool ``[n]``, the rows to be spoken about; None: all.
    :param cross: of these very ``rows``, whose teachers are used and kept; None: fitted here and let go.
    :returns: float64 ``[n, K]`` each, NaN where not wanted.
    """
    folds = config.distillation.folds
    wanted = np.ones(len(rows), dtype=bool) if wanted is None else wanted
    cross = CrossFit(config, rows) if cross is None else cross
    said: dict[str, Array] = {}
    for number in range(folds):
        asked = np.flatnonzero((cross.blocks == number) & wanted)
        if len(asked):
            for leaf, teacher in cross.without(number):
                answer = said.setdefault(leaf.name, np.full((len(rows), len(config.actions)), np.nan))
                what = f"teacher {leaf.name!r} on {len(asked)} rows"
                given = call(what, _timeout(leaf), teacher.predict_proba, rows.iloc[asked])
                answer[asked] = checked(leaf.name, given, len(asked), config.actions)
        progress(f"teacher, block {number + 1} of {folds}")
    return said


def cross_fit_blocks(config: AgentConfig, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The time block of each row, ``[n]``, as :class:`CrossFit` cuts them."""
    order = rows["observed_at"].array.argsort(kind="stable")
    blocks = np.empty(len(rows), dtype=np.int64)
    for number, block in enumerate(np.array_split(order, config.distillation.folds)):
        blocks[block] = number
    return blocks


def without_block(teacher: Ensemble, cross: CrossFit, block: int) -> Ensemble:
    """The same teachers, those that learn fitted outside of one block alone.

    What it says is kept under the version of ``teacher``, as cross-fitted knowledge is.
    """
    actions = teacher.config.actions
    fitted = {
        leaf.name: in_process(leaf.name, actions, made.predict_proba, timeout=_timeout(leaf))
        for leaf, made in cross.without(block)
    }
    members = [
        replace(member, answer=fitted[member.name]) if member.name in fitted else member for member in teacher.members
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
                f"the stored teacher has a part {part['name']!r} that {config.file} does not name; "
                f"it names {sorted(named)}. Refresh with a newly fitted teacher, or restore the agent file"
            )
        member = _member(MemberContext(config, named[part["name"]], folder, models), part)
        members.append(replace(member, share=part["weight"] / total))
    local = not any(named[part["name"]].teacher.is_remote for part in description["parts"])
    weights, version = kept_weights(folder), description["version"]
    return Ensemble(
        config, members, _window(description), _weighted(version, weights), local, weights, before_weights=version
    )


def new_member(config: AgentConfig, teacher: TeacherSection, name: str = "") -> Teacher:
    """An unfitted teacher as the agent file describes it.

    :raises PartError: if it does not import, cannot be made, or lacks a method.
    """
    return new_teacher(teacher, _where(config, name or teacher.name))


# --------------------------------------------------------------------------- members


def _fit_members(config: AgentConfig, rows: pd.DataFrame) -> list[tuple[Leaf, Teacher]]:
    """Those that learn, fitted on the rows whose outcome is known."""
    rows, made = rows[rows["outcome"] >= 0], []
    for leaf in leaves(config.teachers):
        if leaf.teacher.is_fitted:
            teacher = new_member(config, leaf.teacher, leaf.name)
            what = f"fitting teacher {leaf.name!r} on {len(rows)} rows"
            call(what, _timeout(leaf), teacher.fit, rows, rows["outcome"].to_numpy())
            made.append((leaf, teacher))
    return made


def _part(context: MemberContext) -> dict[str, Any]:
    """What is stored about a member: no Python to import, no address to ask."""
    leaf = context.leaf
    part: dict[str, Any] = {"name": leaf.name, "weight": leaf.share}
    if leaf.teacher.gives_features:
        part["features"] = True
    return part | ({"folder": leaf.name} if leaf.teacher.is_fitted else describe(leaf.teacher, context))


def _member(context: MemberContext, part: dict[str, Any]) -> Member:
    leaf = context.leaf
    if leaf.teacher.is_fitted != ("version" not in part):
        raise PartError(
            f"{context.where}.learns: is {leaf.teacher.is_fitted}, but was not when this teacher was made. {RENEW}"
        )
    return open_member(leaf.teacher, context, part)


def _timeout(leaf: Leaf) -> timedelta | None:
    """Of one call to a teacher in this process."""
    return leaf.teacher.call_timeout


def _text_encoder(teacher: HasTextEncoder, where: str) -> TextEncoderState:
    try:
        found = teacher.text_encoder()
    except Exception as error:
        raise PartError(f"{where}: text_encoder fails: {type(error).__name__}: {error}") from error
    if not isinstance(found, TextEncoderState):
        raise PartError(
            f"{where}: text_encoder gives a {type(found).__name__}, not a stillhouse.parts.TextEncoderState"
        )
    return found


def _version(folder: Path, named: Sequence[Leaf], parts: list[dict[str, Any]]) -> str:
    """A single teacher that is not fitted has its own version, so that what it said is not kept twice."""
    if len(parts) == 1 and "version" in parts[0]:
        return str(parts[0]["version"])
    said = [
        (leaf.name, getattr(leaf.teacher, "target", "") if leaf.teacher.is_fitted else part["version"], leaf.share)
        for leaf, part in zip(named, parts, strict=True)
    ]
    return content_hash(folder, json.dumps(said))


def _weighted(version: str, weights: TeacherWeights | None) -> str:
    """A mean under other weights is other knowledge."""
    if weights is None:
        return version
    said = weights.model_dump_json(include={"teachers", "start", "columns", "column_shares", "everywhere", "slices"})
    return short_id(version, said)


def _where(config: AgentConfig, name: str) -> str:
    return f"{config.file}: teachers.{name}"


def _window(description: dict[str, Any]) -> Window | None:
    fitted = description["fitted"]
    return Window.model_validate(fitted) if fitted else None
