"""The agent's teachers as one: fitted on the past, cross-fitted for the rows they were fitted on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, PythonTeacher
from stillhouse.errors import LeakageError, PartError
from stillhouse.parts import Teacher, resolve
from stillhouse.records import ModelRef, TeacherRef, Window

__all__ = ["Ensemble", "cross_fit", "fit", "load", "new_member", "reference"]

Progress = Callable[[str], None]


class Ensemble:
    """Fitted teachers and their weighted mean.

    :param members: name, weight (> 0) and fitted teacher of each.
    :param fitted: the window whose outcomes they have seen; they are not asked about its rows.
    :param version: content hash, under which their knowledge is kept.
    """

    def __init__(
        self, config: AgentConfig, members: list[tuple[str, float, Teacher]], fitted: Window, version: str
    ) -> None:
        self.config = config
        self.members = members
        self.fitted = fitted
        self.version = version

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Raw rows to float64 ``[n, K]``: the weighted mean of the members' probabilities."""
        return _mean(self.config, self.members, rows)

    def ask(self, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
        """:meth:`predict_proba` for observations (with ``observed_at``) that the teachers were not fitted on.

        :raises LeakageError: if a row lies in the window whose outcomes the teachers have seen.
        """
        seen = (rows["observed_at"] >= self.fitted.start) & (rows["observed_at"] < self.fitted.end)
        if seen.any():
            raise LeakageError(
                f"{int(seen.sum())} of {len(rows)} rows lie in {self.fitted}, whose outcomes the teachers of "
                f"{self.config.agent!r} were fitted on; ask for cross-fitted knowledge of that window instead"
            )
        return self.predict_proba(rows)


def fit(config: AgentConfig, rows: pd.DataFrame, window: Window, folder: Path) -> TeacherRef:
    """Fit all teachers on labelled ``rows`` (with ``outcome``) and write them to ``folder``."""
    members = _fit_members(config, rows)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, _, teacher in members:
        (partial / name).mkdir(parents=True)
        teacher.save(partial / name)
    version = _content_hash(partial, [(t.name, t.target, t.weight) for t in config.teachers])
    description = {
        "agent": config.agent,
        "version": version,
        "parts": [{"name": name, "weight": weight, "folder": name} for name, weight, _ in members],
        "fitted": window.model_dump(mode="json"),
    }
    (partial / "teacher.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return reference(folder)


def reference(folder: Path, model: ModelRef | None = None) -> TeacherRef:
    """What is to be known about the fitted teacher in ``folder``, and where MLflow keeps it."""
    description = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
    return TeacherRef(
        version=description["version"],
        folder=str(folder),
        fitted=Window.model_validate(description["fitted"]),
        bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        model=model,
    )


def cross_fit(
    config: AgentConfig, rows: pd.DataFrame, progress: Progress = lambda text: None
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Knowledge about labelled ``rows`` from teachers that have not seen their outcomes: float64 ``[n, K]``.

    The rows, ordered by time, are cut into ``distillation.folds`` contiguous blocks; each block is labelled by
    teachers fitted on the others (cross-fitting; Chernozhukov et al. 2018, "Double/debiased machine learning",
    §3). Contiguous, because neighbours in time share their weather: a random cut would leak.
    """
    folds = config.distillation.folds
    order = np.argsort(rows["observed_at"].to_numpy(), kind="stable")
    said = np.empty((len(rows), len(config.actions)))
    for number, block in enumerate(np.array_split(order, folds), start=1):
        others = np.setdiff1d(order, block, assume_unique=True)
        said[block] = _mean(config, _fit_members(config, rows.iloc[others]), rows.iloc[block])
        progress(f"teacher, block {number} of {folds}")
    return said


def load(folder: Path, config: AgentConfig) -> Ensemble:
    """Read what :func:`fit` wrote. Which class reads which part is said by the agent file alone.

    :raises PartError: if the agent file has no teacher of a stored part's name.
    """
    description = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
    named = {teacher.name: teacher for teacher in config.teachers}
    members: list[tuple[str, float, Teacher]] = []
    for part in description["parts"]:
        if part["name"] not in named:
            raise PartError(
                f"the stored teacher has a part {part['name']!r} that agents/{config.agent}.yaml does not name; "
                f"it names {sorted(named)}. Refresh with a newly fitted teacher, or restore the agent file"
            )
        kind = resolve(named[part["name"]].target, where=f"agents/{config.agent}.yaml: teachers")
        members.append((part["name"], part["weight"], kind.load(folder / part["folder"])))
    return Ensemble(config, members, Window.model_validate(description["fitted"]), description["version"])


def new_member(config: AgentConfig, teacher: PythonTeacher) -> Teacher:
    """An unfitted teacher as the agent file describes it.

    :raises PartError: if it does not import, cannot be made, or lacks a method.
    """
    where = f"agents/{config.agent}.yaml: teachers.{teacher.name}"
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


def _fit_members(config: AgentConfig, rows: pd.DataFrame) -> list[tuple[str, float, Teacher]]:
    members = []
    for teacher in config.teachers:
        made = new_member(config, teacher)
        made.fit(rows, rows["outcome"].to_numpy())
        members.append((teacher.name, teacher.weight, made))
    return members


def _mean(
    config: AgentConfig, members: list[tuple[str, float, Teacher]], rows: pd.DataFrame
) -> np.ndarray[Any, np.dtype[np.float64]]:
    total = sum(weight for _, weight, _ in members)
    mean = np.zeros((len(rows), len(config.actions)))
    for name, weight, teacher in members:
        mean += weight / total * _checked(name, teacher.predict_proba(rows), len(rows), config)
    return mean


def _checked(name: str, said: np.ndarray[Any, Any], rows: int, config: AgentConfig) -> np.ndarray[Any, Any]:
    """``said``, if it is a probability per row and action."""
    said = np.asarray(said)
    if said.shape != (rows, len(config.actions)):
        raise PartError(f"teacher {name!r} answered with shape {said.shape}, not {(rows, len(config.actions))}")
    if not (np.isfinite(said).all() and (said >= 0).all() and np.allclose(said.sum(axis=1), 1.0, atol=1e-3)):
        raise PartError(f"teacher {name!r} answered with values that are not probabilities (rows must sum to 1)")
    return said


def _content_hash(folder: Path, parts: list[tuple[str, str, float]]) -> str:
    """Of all that decides what the teachers say: their files, which class reads them, and their weights."""
    digest = hashlib.sha256(json.dumps(parts).encode())
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
