"""The worlds of `benchmarks.streams`, kept in a folder: each model is trained once, and a run that was killed goes on.

A world is one stream under one seed with one kind of student. Its folder has a file ``<step>.npy`` per model (the
logarithms of its probabilities on all later rows, float16) and ``scores.pkl`` with the losses that policies have asked
for. The folder's name has a hash of rows and settings, and none of the code: after a change of how students are
trained, use another cache.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.streams_data import RIVER_KINDS, WEEK, Stream, banking, flights, movielens, river_stream, router, spam
from stillhouse.config import AgentConfig
from stillhouse.replay.history import History
from stillhouse.replay.script import train_script_student
from stillhouse.replay.training import Trainer, ask_ready_teachers, train_student
from stillhouse.replay.world import Made, World

__all__ = ["STREAMS", "STUDENTS", "StoredWorld", "history_of"]

Array = np.ndarray[Any, Any]

STREAMS: dict[str, Callable[[int], Stream]] = {
    **{kind: lambda seed, kind=kind: river_stream(kind, seed) for kind in RIVER_KINDS},
    "spam": lambda seed: spam(),
    "movielens": lambda seed: movielens(),
    "banking_labels": lambda seed: banking("labels", seed),
    "banking_llm": lambda seed: banking("llm", seed),
    "flights": lambda seed: flights(),
    "router": lambda seed: router(WEEK),
}
"""The reported streams, in the order in which they are trained: the cheap ones first."""

STUDENTS: dict[str, Trainer] = {"ours": train_student, "plain": train_script_student}
"""How each kind of student is trained: as a refresh trains ours, and as a plain script would."""


# --------------------------------------------------------------------------- history of a stream


def history_of(stream: Stream, seed: int, cache: Path) -> History:
    """The labelled rows of a stream in weeks, from the first champion on; the last week counts from half a week on.

    Where steps of the stream are longer than a week, weeks without a row are possible: they count for no policy.

    :param seed: of all trainings.
    :param cache: where answers of teachers that do not learn are kept.
    """
    first_decided = stream.rows_of(stream.first_steps)["observed_at"].iloc[0]
    start = stream.start + (first_decided - stream.start) // stream.step * pd.Timedelta(stream.step)
    known = (stream.rows["outcome"] >= 0).to_numpy()
    rows = stream.rows[known].reset_index(drop=True)
    settings = _replay_settings(stream, seed)
    ready = _ready_answers(settings, rows, cache) if stream.teacher_probs is None else stream.teacher_probs[known]
    steps = round((rows["observed_at"].iloc[-1] - start) / stream.step)
    return History.of(settings, rows, start, stream.step, steps, ready)


def _replay_settings(stream: Stream, seed: int) -> AgentConfig:
    """The settings of a stream without second trainings and synthetic rows; recorded answers need no fitted teacher."""
    distillation = stream.settings.distillation
    augment = distillation.augment.model_copy(update={"copies": 0.0})
    changed = distillation.model_copy(update={"seed": seed, "control": False, "augment": augment})
    settings = stream.settings.model_copy(update={"distillation": changed})
    if stream.teacher_probs is None:
        return settings
    teachers = tuple(teacher.model_copy(update={"learns": False}) for teacher in settings.teachers)
    return settings.model_copy(update={"teachers": teachers})


def _ready_answers(settings: AgentConfig, rows: pd.DataFrame, cache: Path) -> Array | None:
    """What the teachers that do not learn say of all rows, ``[n, K]``, read from the cache after the first time."""
    file = cache / f"ready-{settings.agent}-{_digest(settings, rows)}.npy"
    if file.exists():
        stored: Array = np.load(file)
        return stored
    answers = ask_ready_teachers(settings, rows)
    if answers is not None:
        _replace(file, lambda partial: np.save(partial, answers))
    return answers


_SHAPES_MODELS = {"actions", "observations", "teachers", "asking", "student", "distillation", "windows"}
"""Sections of the settings that trained models depend on."""


def _digest(settings: AgentConfig, rows: pd.DataFrame) -> str:
    content = hashlib.sha256(settings.model_dump_json(include=_SHAPES_MODELS).encode())
    content.update(pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes())
    return content.hexdigest()[:12]


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file as a whole: a kill leaves none that is incomplete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{os.getpid()}-{file.name}")
    write(partial)
    partial.replace(file)


# --------------------------------------------------------------------------- models on disk


@dataclass(frozen=True)
class StoredWorld:
    """The models of one history and one kind of student, in a folder.

    :ivar student: a key of :data:`STUDENTS`.
    """

    history: History
    student: str
    folder: Path

    @classmethod
    def of(cls, history: History, name: str, seed: int, student: str, cache: Path) -> StoredWorld:
        """The world of stream ``name`` under ``seed`` in ``cache``."""
        digest = _digest(history.settings, history.rows)
        return cls(history, student, cache / f"{name}-{seed}-{student}-{digest}")

    @property
    def missing(self) -> list[int]:
        """Steps whose models are not trained yet."""
        return [step for step in range(self.history.steps) if not self._file(step).exists()]

    def train(self, processes: int) -> Iterator[int]:
        """Train the missing models and store each; yields the number of models that exist, after each of them."""
        missing, steps = self.missing, self.history.steps
        if processes <= 1 or len(missing) <= 1:
            for count, step in enumerate(missing, start=1):
                self.train_model(step)
                yield steps - len(missing) + count
            return
        workers = min(processes, len(missing))
        with ProcessPoolExecutor(workers, get_context("forkserver"), _start_worker, (self,)) as pool:
            jobs = [pool.submit(_train_in_worker, step) for step in missing]
            for count, job in enumerate(as_completed(jobs), start=1):
                job.result()
                yield steps - len(missing) + count

    def train_model(self, step: int) -> None:
        """Train the model of one step and store it."""
        log_probs = World(self.history, STUDENTS[self.student]).log_probs(Made(step)).astype(np.float16)
        _replace(self._file(step), lambda partial: np.save(partial, log_probs))

    def play(self, play: Callable[[World], Any]) -> Any:
        """What ``play`` returns for the world; the losses that it asks for are stored afterwards.

        :raises FileNotFoundError: if a model is missing.
        """
        file = self.folder / "scores.pkl"
        kept, known = pickle.loads(file.read_bytes()) if file.exists() else ({}, {})  # noqa: S301  our own file
        log_probs = {Made(step): np.load(self._file(step)).astype(np.float32) for step in range(self.history.steps)}
        count = len(kept) + len(known)
        result = play(World(self.history, STUDENTS[self.student], _log_probs=log_probs, _scores=kept, _known=known))
        if len(kept) + len(known) > count:
            content = pickle.dumps((kept, known))
            _replace(file, lambda partial: partial.write_bytes(content))
        return result

    def _file(self, step: int) -> Path:
        return self.folder / f"{step}.npy"


_WORKER: dict[str, StoredWorld] = {}


def _start_worker(world: StoredWorld) -> None:
    import torch

    torch.set_num_threads(1)
    _WORKER["world"] = world


def _train_in_worker(step: int) -> None:
    _WORKER["world"].train_model(step)
