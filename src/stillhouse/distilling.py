"""Distil and compress from Python, without an agent file, a flow or a server.

The loop (:func:`stillhouse.refresh`) takes the same steps with the settings of an agent file and splits rows by time.
Here rows are split at random: use it for rows without an order in time, or to try a student out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype
from pydantic import BaseModel, ValidationError

from stillhouse.compress.search.greedy import search as search_recipes
from stillhouse.compress.target import Columns, CompressionTarget, ModelState
from stillhouse.compress.variants import target_from_student, variant_writer
from stillhouse.config import AgentConfig, Compression, fit_defaults
from stillhouse.distill.students import AnyStudent, columns_of, input_widths, new_student
from stillhouse.distill.train import distil as train
from stillhouse.distill.training_set import TrainingSet
from stillhouse.errors import ConfigError, DataError, ExportError
from stillhouse.evaluate.scorecard import measure_quality
from stillhouse.records import SizeLimits
from stillhouse.variant import Variant, encode

__all__ = ["DistilledStudent", "distil"]

Array = np.ndarray[Any, Any]
AnySection = TypeVar("AnySection", bound=BaseModel)

_VALIDATION_SHARE = 0.2
_MIN_ROWS = 50  # of which a fifth are validation rows: fewer cannot tell two candidates apart


@dataclass(frozen=True)
class DistilledStudent:
    """A trained student with the rows that its compression needs.

    :param module: encoded rows, float32 ``[n, D]``, to logits ``[n, K]``.
    :param columns: input columns, as :func:`stillhouse.variant.encode` takes them.
    :param rows: training and validation rows, raw.
    :param teacher_probs: ``[n, K]``; a row of NaN has none.
    :param labels: action indices ``[n]``; −1 where the outcome is not known.
    :param validation: bool ``[n]``: rows that the student was not trained on; compression is measured on them.
    """

    module: AnyStudent
    columns: tuple[Mapping[str, Any], ...]
    config: AgentConfig
    rows: pd.DataFrame
    teacher_probs: Array
    labels: Array
    validation: Array

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the actions, in the order of the probabilities."""
        return tuple(self.config.actions)

    def compress(
        self,
        folder: Path | str,
        *,
        max_bytes: int | None = None,
        max_p95_ms: float | None = None,
        max_quality_loss: float = 0.005,
        search: str | None = "30s",
    ) -> Variant:
        """Search smaller variants of this student, write the best one within the limits, and load it.

        Each candidate is a real ONNX file, measured on this machine; quality is measured on the validation rows,
        against the labels where there are any, else as agreement with the teacher's decisions.

        :param folder: of the variant; it must not exist yet.
        :param max_bytes: of the folder on disk.
        :param max_p95_ms: of one row's decision (ms).
        :param max_quality_loss: below the float32 student's, 0…1.
        :param search: how long to search, such as ``"2m"``; None: only the default recipes, without a search.
        :raises ConfigError: if a limit or the time is out of its range.
        :raises DataError: if the folder exists.
        :raises ExportError: if no variant is within the limits; the message names the limits that would have to change.
        """
        target = Path(folder)
        if target.exists():
            raise DataError(f"{target} exists: name a folder that does not, or remove it")
        settings = _valid(Compression, {"search": None if search is None else {"time": search}})
        limits = {"max_bytes": max_bytes, "max_p95_ms": max_p95_ms, "max_quality_loss": max_quality_loss}
        size_limits = _valid(SizeLimits, limits)
        with TemporaryDirectory() as scratch:
            frontier = search_recipes(
                lambda: _target(self),
                settings,
                size_limits,
                variant_writer(self.config.agent, self.actions, {}),
                Path(scratch),
            )
            if not frontier.fits:
                raise ExportError(frontier.why)
            shutil.copytree(frontier.named(frontier.chosen).folder, target)
        return Variant(target)


def distil(
    rows: pd.DataFrame,
    teacher_probs: Array,
    labels: Array | None = None,
    *,
    actions: Sequence[str],
    columns: Mapping[str, Mapping[str, Any]] | None = None,
    student: Mapping[str, Any] | None = None,
    **distillation: Any,
) -> DistilledStudent:
    """Train a small student to imitate a teacher.

    >>> import numpy as np, pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> rows = pd.DataFrame({"age": rng.uniform(0, 90, 600), "ward": rng.choice(["a", "b"], 600)})
    >>> p_high = 1 / (1 + np.exp(-(rows["age"] - 45) / 10))
    >>> student = distil(rows, np.column_stack([1 - p_high, p_high]), actions=["low", "high"], epochs=20)
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     variant = student.compress(f"{folder}/risk", max_bytes=50_000, search=None)
    >>> variant.decide({"age": 80, "ward": "b"}).action
    'high'

    The teacher must not have been fitted on ``rows``: its probabilities on rows that it has memorised are too sure.
    A fifth of the rows, drawn with the seed of the distillation, are validation rows, which the student never learns
    from; they stop the training and control temperature and label weight.

    :param rows: raw rows; numbers become number columns, all others categories.
    :param teacher_probs: the teacher's probabilities ``[n, K]``; a row of NaN where it was not asked.
    :param labels: true action indices ``[n]``, −1 where unknown; None: none is known.
    :param actions: K names.
    :param columns: types that differ from those guessed, such as ``{"sentence": {"type": "text"}}``.
    :param student: keys of the agent file's section ``student``; default ``{"kind": "tabular"}``.
    :param distillation: keys of the agent file's section ``distillation``, such as ``epochs`` or ``seed``. What is
        not given is chosen by the number of rows (:func:`stillhouse.config.fit_defaults`).
    :raises ConfigError: if a setting is unknown or out of its range.
    :raises DataError: if shapes do not agree or there are fewer than 50 rows.
    """
    probs = np.asarray(teacher_probs, dtype=np.float64)
    label_array = np.full(len(rows), -1) if labels is None else np.asarray(labels)
    if probs.shape != (len(rows), len(actions)) or label_array.shape != (len(rows),):
        raise DataError(
            f"{len(rows)} rows and {len(actions)} actions need teacher_probs {[len(rows), len(actions)]} and labels "
            f"{[len(rows)]}; they are {list(probs.shape)} and {list(label_array.shape)}"
        )
    if len(rows) < _MIN_ROWS:
        raise DataError(f"{len(rows)} rows are too few to train and validate a student on: give {_MIN_ROWS} or more")
    config = _config(rows, actions, columns or {}, student or {"kind": "tabular"}, distillation)
    settings = fit_defaults(config.distillation, len(rows))
    config = config.model_copy(update={"distillation": settings})
    rng = np.random.default_rng(config.distillation.seed)
    validation = np.isin(np.arange(len(rows)), rng.permutation(len(rows))[: int(len(rows) * _VALIDATION_SHARE)])
    frame = rows.reset_index(drop=True)
    inputs = columns_of(config, frame[~validation])
    x = encode(frame, inputs)
    module = new_student(config, inputs, x[~validation])
    distilled = DistilledStudent(module, tuple(inputs), config, frame, probs, label_array, validation)
    train(
        module,
        _training_set(distilled, inputs, ~validation),
        config.distillation,
        validation=_training_set(distilled, inputs, validation),
    )
    return distilled


# --------------------------------------------------------------------------- inside


def no_source(start: datetime, end: datetime) -> pd.DataFrame:
    """The source in the agent file of :func:`distil`, whose rows are arguments: it cannot be called.

    :raises ConfigError: always.
    """
    raise ConfigError("this agent was made by stillhouse.distil: it has no source of observations")


def _config(
    rows: pd.DataFrame,
    actions: Sequence[str],
    columns: Mapping[str, Mapping[str, Any]],
    student: Mapping[str, Any],
    distillation: Mapping[str, Any],
) -> AgentConfig:
    """The agent file of these rows; columns that ``columns`` lacks are numbers if numeric, else categories."""
    guessed = {
        str(name): {"type": "number" if is_numeric_dtype(rows[name]) and not is_bool_dtype(rows[name]) else "category"}
        for name in rows.columns
    }
    source = f"{__name__}:{no_source.__name__}"
    return _valid(
        AgentConfig,
        {
            "agent": "distilled",
            "actions": list(actions),
            "observations": {"source": source, "since": "1970-01-01T00:00:00Z", "columns": guessed | dict(columns)},
            "outcomes": {"source": source, "delay": "0s"},
            "teachers": [{"kind": "python", "name": "given", "target": source}],
            "windows": {"train": "1d", "test": "1d", "current": "1d"},
            "watch": {},
            "student": student,
            "distillation": distillation,
        },
    )


def _valid(section: type[AnySection], settings: Mapping[str, Any]) -> AnySection:
    """:raises ConfigError: naming each setting that is wrong."""
    try:
        return section.model_validate(settings)
    except ValidationError as error:
        mistakes = (
            f"{'.'.join(map(str, mistake['loc'])) or 'settings'}: {mistake['msg']}" for mistake in error.errors()
        )
        raise ConfigError("; ".join(mistakes)) from error


def _training_set(student: DistilledStudent, columns: Sequence[Mapping[str, Any]], chosen: Array) -> TrainingSet:
    """The ``chosen`` rows, encoded with ``columns``, as far as they have teacher probabilities or a label."""
    usable = chosen & (~np.isnan(student.teacher_probs[:, 0]) | (student.labels >= 0))
    numbers, _, tokens = input_widths(columns)
    return TrainingSet(
        encode(student.rows[usable], list(columns)),
        student.teacher_probs[usable],
        student.labels[usable],
        numbers=numbers,
        tokens=tokens,
    )


def _target(student: DistilledStudent) -> CompressionTarget:
    """The student as the target of compression, measured on its validation rows."""
    config, validation = student.config, student.validation
    labels = np.where(student.labels >= 0, student.labels, np.nan_to_num(student.teacher_probs).argmax(axis=1))
    if (student.labels[validation] >= 0).any():
        validation = validation & (student.labels >= 0)

    def encoded(chosen: Array) -> Callable[[Columns], Array]:
        return lambda columns: encode(student.rows[chosen], [dict(column) for column in columns])

    def recover(state: ModelState, epochs: int) -> ModelState:
        assert state.columns is not None  # a student has them
        sets = [_training_set(student, state.columns, chosen) for chosen in (~student.validation, student.validation)]
        train(state.module, sets[0], config.distillation, validation=sets[1], epochs=epochs)
        return state

    return target_from_student(
        deepcopy(student.module),
        student.columns,
        student.actions,
        calibration=encoded(~student.validation),
        validation=encoded(validation),
        quality=lambda probs: measure_quality(probs, labels[validation]).score,
        recover=recover,
        quality_name="score on validation rows",
    )
