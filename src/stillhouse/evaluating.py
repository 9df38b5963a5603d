"""Evaluate an agent's models on files of rows with outcomes: champion, previous and teacher, each beside the champion.

The files are read as ``stillhouse import`` reads them, and are written nowhere. Rows of the time that a model was
trained on are left out, because its figures on them would be too good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import pandas as pd

from stillhouse.actions import align_actions
from stillhouse.champion import Champion, load_champion, load_version, open_registry
from stillhouse.config import AgentConfig, ImportedOutcome, ImportedTime, Importing
from stillhouse.errors import NoChampionError, RegistryError, SchemaError, WindowError
from stillhouse.evaluate.comparing import bound_quality, compare_models, lower_bound, upper_bound
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.content import content_keys, tidy
from stillhouse.knowledge.importing.source import ImportSource
from stillhouse.knowledge.log_files import LogFile
from stillhouse.quality import ACCURACY, Answers, Measure, Policy, get_measure
from stillhouse.records import EvaluatedModel, Evaluation, IntervalEstimate, Window
from stillhouse.stats import cluster_ids, replace_non_finite
from stillhouse.teachers.answers import Allowance
from stillhouse.teachers.labeling import LabelingBudget, ask, estimate_cost
from stillhouse.watching.pool import make_policy

__all__ = [
    "Contestant",
    "LabelledRows",
    "TeacherPrice",
    "choose_contestants",
    "evaluate",
    "leave_out_trained",
    "price_teacher",
    "read_labelled_rows",
]

Array = np.ndarray[Any, Any]
OnRows = Callable[[str, int], None]

_CHUNK_ROWS = 50_000
_MAX_PROBLEMS = 20


@dataclass(frozen=True)
class LabelledRows:
    """The usable rows of the files.

    :param rows: observations with ``content_key`` and ``outcome`` (action index).
    :param read: non-empty lines; those that are not in ``rows`` are counted by the other fields.
    :param problems: the first unusable lines.
    """

    files: tuple[str, ...]
    rows: pd.DataFrame
    read: int
    unusable: int
    without_outcome: int
    duplicates: int
    trained_on: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contestant:
    """A registered version that is scored."""

    role: Literal["champion", "previous", "version"]
    champion: Champion
    trained_on: tuple[Window, ...]

    @property
    def name(self) -> str:
        """The version, such as ``flights@7``."""
        return str(self.champion.model)


@dataclass(frozen=True)
class TeacherPrice:
    """The most that the teacher's answers can cost.

    :param rows: rows that it would be asked about; stored answers are used again.
    :param money: in the unit of the agent file's prices.
    """

    rows: int
    money: float


def read_labelled_rows(
    settings: AgentConfig, files: Sequence[Path], outcome: str | None = None, on_bytes: OnRows = lambda _f, _n: None
) -> LabelledRows:
    """Read the files by the agent file's section ``importing``; without it, columns have the names of the agent file.

    :param outcome: column of the true action; None: ``importing.outcome.action``, else ``outcome``.
    :param on_bytes: called with the name of a file and the number of bytes read since the last call.
    :raises SchemaError: if a file cannot be read or lacks a column, or no row of any file has an outcome.
    """
    frames, problems = [], list[str]()
    read = unusable = without_outcome = 0
    for number, path in enumerate(files):
        source = ImportSource.open(path, _map_outcome(settings, path, outcome))
        source.digest = str(number)  # ids made of lines differ from file to file
        bytes_read = 0
        for chunk in source.file.chunks(source.columns, _CHUNK_ROWS):
            converted = source.to_table_rows(chunk)
            labels = converted.outcomes[["observation_id", "action"]] if len(converted.outcomes) else None
            rows = _join_labels(settings, converted.observations, labels)
            read += len(chunk.lines) + len(chunk.bad)
            unusable += len(converted.problems)
            without_outcome += len(converted.observations) - len(rows)
            problems += [str(problem) for problem in converted.problems[: _MAX_PROBLEMS - len(problems)]]
            frames.append(rows)
            on_bytes(path.name, chunk.bytes_read - bytes_read)
            bytes_read = chunk.bytes_read
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    if rows.empty:
        raise SchemaError(
            f"no row of {', '.join(map(str, files))} can be scored: {read:,} read, {unusable:,} unusable, "
            f"{without_outcome:,} without an outcome" + (f"; first: {problems[0]}" if problems else "")
        )
    distinct = rows.drop_duplicates("observation_id").reset_index(drop=True)
    distinct = distinct.assign(content_key=content_keys(tidy(distinct, settings), settings))
    return LabelledRows(
        files=tuple(path.name for path in files),
        rows=distinct,
        read=read,
        unusable=unusable,
        without_outcome=without_outcome,
        duplicates=len(rows) - len(distinct),
        problems=tuple(problems),
    )


def choose_contestants(settings: AgentConfig, versions: Sequence[int] = ()) -> list[Contestant]:
    """The champion, the previous champion where there is one, and further versions; each version once.

    :raises NoChampionError: if the agent has no champion.
    :raises RegistryError: if a version does not exist.
    """
    agent, registry = settings.agent, open_registry(settings.agent)
    champion = load_champion(agent, settings)
    if champion is None:
        raise NoChampionError(
            f"agent {agent!r} has no champion yet: python -m flows refresh --agent {agent} --trigger bootstrap"
        )
    final_fits = registry.final_fits()
    contestants: dict[str, Contestant] = {}

    def add(role: Literal["champion", "previous", "version"], loaded: Champion) -> None:
        baseline, name = loaded.baseline, str(loaded.model)
        trained_on = (baseline.train, baseline.test) if name in final_fits else (baseline.train,)
        contestants.setdefault(name, Contestant(role, loaded, trained_on))

    add("champion", champion)
    if (previous := registry.previous()) is not None:
        add("previous", load_version(agent, previous))
    for number in versions:
        model = registry.version(agent, str(number))
        if model is None:
            raise RegistryError(f"agent {agent!r} has no version {number}: stillhouse status {agent} lists them")
        add("version", load_version(agent, model))
    return list(contestants.values())


def leave_out_trained(labelled: LabelledRows, contestants: Sequence[Contestant]) -> LabelledRows:
    """The rows outside the time that any of the models was trained on.

    :raises WindowError: if none is left.
    """
    times, windows = labelled.rows["observed_at"], dict[tuple[datetime, datetime], str]()
    for contestant in contestants:
        windows.update({(window.start, window.end): contestant.name for window in contestant.trained_on})
    seen = np.zeros(len(times), dtype=bool)
    for start, end in windows:
        seen |= ((times >= start) & (times < end)).to_numpy()
    if not seen.any():
        return labelled
    spans = "; ".join(f"{name} on {start:%Y-%m-%d} to {end:%Y-%m-%d}" for (start, end), name in windows.items())
    if seen.all():
        raise WindowError(
            f"all {len(times):,} rows are of the time that the models were trained on ({spans}), so their figures "
            "would be too good: give newer rows, or score these with --include-trained"
        )
    note = f"{seen.sum():,} rows left out, because they are of the time that a model was trained on: {spans}"
    return replace(
        labelled,
        rows=labelled.rows[~seen].reset_index(drop=True),
        trained_on=int(seen.sum()),
        notes=(*labelled.notes, note),
    )


def price_teacher(labelled: LabelledRows, champion: Contestant) -> TeacherPrice:
    """The most that the champion's teacher can cost on these rows; nothing for a teacher in this process."""
    loaded = champion.champion
    if loaded.teacher.local:
        return TeacherPrice(0, 0.0)
    base, rows = KnowledgeBase(loaded.settings), labelled.rows
    return TeacherPrice(*estimate_cost(loaded.teacher, rows[~loaded.teacher.in_fit_window(rows)], base))


def evaluate(
    settings: AgentConfig,
    labelled: LabelledRows,
    contestants: Sequence[Contestant],
    *,
    max_cost: float | None = None,
    with_teacher: bool = True,
    confidence: float = 0.95,
    on_model: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Score the models, and compare each with the champion on the same rows.

    The intervals and the bounds of the differences are those of the gate, with rows of one ``promotion.cluster`` as one
    piece of evidence. A remote teacher's answers are stored, so that none is paid for twice; its cost is recorded.

    :param contestants: the champion first, as :func:`choose_contestants` returns them.
    :param max_cost: the most that the teacher may cost, in the unit of the prices; None: no limit.
    :param with_teacher: whether to score the champion's teacher.
    :param confidence: of the two-sided intervals.
    :param on_model: called with the name of each model before it is scored.
    :raises PartError: if the teacher cannot be loaded, or a local one fails.
    """
    rows, notes = labelled.rows, list(labelled.notes)
    labels, named = rows["outcome"].to_numpy(), get_measure(settings)
    measure = named if named.episodes else named.for_labels(labels, len(settings.actions))
    if measure.name != named.name:
        notes.append(
            f"the measure is the {measure.title}: all outcomes are of one action, so there is no {named.title}"
        )
    scorer = _Scorer(rows, labels, measure, confidence, cluster_ids(rows["observed_at"], settings.promotion.cluster))
    champion, of_champion, models = contestants[0], None, list[EvaluatedModel]()
    for contestant in contestants:
        on_model(contestant.name)
        if missing := _missing_columns(contestant.champion, settings):
            notes.append(f"{contestant.name} is not scored: it reads the columns {missing}, which the agent file lacks")
            continue
        policy = make_policy(contestant.champion.variant, settings.actions)
        answers = Answers(policy(rows), measure.play(policy, rows))
        models.append(scorer.score(contestant.role, contestant.name, answers, of_champion))
        of_champion = answers if contestant is champion else of_champion
    if len(contestants) == 1:
        notes.append("there is no previous champion")
    if with_teacher:
        on_model("teacher")
        probs = _ask_teacher(champion.champion, rows, max_cost, notes)
        probs = align_actions(probs, champion.champion.actions, settings.actions)
        answered, loaded = ~np.isnan(probs[:, 0]), champion.champion
        played = measure.play(_make_teacher_policy(loaded, settings.actions), rows)
        if answered.any() and measure.for_labels(labels[answered], probs.shape[1], played) is measure:
            models.append(scorer.score("teacher", str(loaded.baseline.teacher), Answers(probs, played), of_champion))
    return Evaluation(
        agent=settings.agent,
        files=labelled.files,
        measure=measure.name,
        unit=measure.unit,
        better=measure.better,
        confidence=confidence,
        rows_read=labelled.read,
        unusable=labelled.unusable,
        without_outcome=labelled.without_outcome,
        duplicates=labelled.duplicates,
        trained_on=labelled.trained_on,
        rows=len(rows),
        models=tuple(models),
        problems=labelled.problems,
        notes=tuple(notes),
    )


# --------------------------------------------------------------------------- inside


def _map_outcome(settings: AgentConfig, path: Path, outcome: str | None) -> AgentConfig:
    """The agent file with a mapping that has an outcome and no decision; a file without ids has those of its lines."""
    importing = settings.importing
    if importing is None:
        has_ids = "observation_id" in LogFile(path).columns
        importing = Importing(
            observation_id="observation_id" if has_ids else None,
            made_of="line",
            observed_at=ImportedTime(column="observed_at"),
        )
    column = outcome or (importing.outcome.action if importing.outcome else "outcome")
    mapping = importing.model_copy(update={"outcome": ImportedOutcome(action=column), "decision": None})
    return settings.model_copy(update={"importing": mapping})


def _join_labels(settings: AgentConfig, rows: pd.DataFrame, labels: pd.DataFrame | None) -> pd.DataFrame:
    """The rows that have an outcome, with its index in ``outcome``."""
    if labels is None:
        return rows.head(0).assign(outcome=np.empty(0, dtype=np.int64))
    indices = {action: index for index, action in enumerate(settings.actions)}
    by_id = labels.drop_duplicates("observation_id").set_index("observation_id")["action"].map(indices)
    outcome = rows["observation_id"].map(by_id)
    return rows.assign(outcome=outcome)[outcome.notna()].astype({"outcome": np.int64})


def _missing_columns(champion: Champion, settings: AgentConfig) -> list[str]:
    return sorted({column["name"] for column in champion.variant.columns} - set(settings.observations.columns))


def _ask_teacher(champion: Champion, rows: pd.DataFrame, max_cost: float | None, notes: list[str]) -> Array:
    """The teacher's probabilities, float64 ``[n, K]``; NaN where it has none, and a note says why."""
    teacher = champion.teacher
    in_fit_window = teacher.in_fit_window(rows)
    probs = np.full((len(rows), len(champion.actions)), np.nan)
    asked = rows[~in_fit_window]
    if in_fit_window.any():
        notes.append(f"the teacher is not asked about {in_fit_window.sum():,} rows of the time that it was fitted on")
    if len(asked) and teacher.local:
        probs[~in_fit_window] = teacher.predict_proba(asked)
    elif len(asked):
        base = KnowledgeBase(champion.settings)
        job, limit = f"evaluate:{uuid4().hex}", "" if max_cost is None else f"--max-cost {max_cost:g}"
        budget = LabelingBudget(
            base, "evaluate", job, base.resolve_time(None), Allowance(None, max_cost), limit or "no limit"
        )
        probs[~in_fit_window] = ask(teacher, asked, budget)
        if budget.stop_reason:
            notes.append(f"the teacher did not answer all rows: {budget.stop_reason}")
    answered = int((~np.isnan(probs[:, 0])).sum())
    if answered < len(asked):
        notes.append(f"the teacher answered {answered:,} of {len(asked):,} rows; it is compared on those")
    return probs


def _make_teacher_policy(champion: Champion, actions: Sequence[str]) -> Policy | None:
    """The teacher as a model that plays episodes; None: each of its answers would cost money."""
    if not champion.teacher.local:
        return None
    return lambda rows: align_actions(champion.teacher.predict_proba(rows), champion.actions, actions)


@dataclass(frozen=True)
class _Scorer:
    """Scores models on the same rows.

    :param clusters: cluster of each row, integers ``[n]``.
    """

    rows: pd.DataFrame
    labels: Array
    measure: Measure
    confidence: float
    clusters: Array

    def score(
        self,
        role: Literal["champion", "previous", "version", "teacher"],
        name: str,
        answers: Answers,
        champion: Answers | None,
    ) -> EvaluatedModel:
        """A model's record.

        :param answers: rows of a teacher that are NaN are left out, and those of a variant are the worst answer.
        :param champion: the champion's answers; None: this is the champion.
        """
        probs, episodes = answers.probs, answers.episodes
        mask = ~np.isnan(probs[:, 0]) if role == "teacher" else np.ones(len(probs), dtype=bool)
        rows, labels, clusters = self.rows[mask], self.labels[mask], self.clusters[mask]
        probs = replace_non_finite(probs[mask], labels)
        bounds = bound_quality(labels, probs, self.measure, self.confidence, clusters, rows, episodes)
        low, high = bounds or (None, None)
        return EvaluatedModel(
            role=role,
            name=name,
            rows=len(labels),
            quality=IntervalEstimate(value=self.measure.value(probs, labels, rows, episodes), low=low, high=high),
            accuracy=ACCURACY.value(probs, labels),
            difference=None
            if champion is None
            else self._compare(
                rows, labels, Answers(probs, episodes), Answers(champion.probs[mask], champion.episodes), clusters
            ),
        )

    def _compare(
        self, rows: pd.DataFrame, labels: Array, answers: Answers, champion: Answers, clusters: Array
    ) -> IntervalEstimate | None:
        comparison = compare_models(
            "file",
            labels,
            answers.probs,
            champion.probs,
            0.0,
            clusters,
            measure=self.measure,
            rows=rows,
            episodes=(answers.episodes, champion.episodes),
        )
        if comparison is None:
            return None
        side = (1 + self.confidence) / 2
        return IntervalEstimate(
            value=comparison.difference, low=lower_bound(comparison, side), high=upper_bound(comparison, side)
        )
