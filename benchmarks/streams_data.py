"""The streams of `benchmarks.streams`: rows in the order of time, the settings of the agent that decides them, steps.

:func:`dev_streams` are for development: no result reports them, and constants may be chosen on them. Of the streams
that are reported, that holds for :func:`flights` and :func:`router` alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from benchmarks.peers import peer
from benchmarks.stream_files import cache_path, read_banking, read_mails, read_ratings
from examples import flights as flights_example
from examples import router as router_example
from stillhouse.config import AgentConfig, load_file

__all__ = [
    "RIVER_KINDS",
    "Stream",
    "banking",
    "dev_streams",
    "flights",
    "movielens",
    "river_stream",
    "router",
    "spam",
]

Array = np.ndarray[Any, Any]

DAY, WEEK = timedelta(days=1), timedelta(weeks=1)
FIRST_DAY = pd.Timestamp("2024-01-01T00:00:00Z")
"""Start of every generated stream, a Monday."""

GENERATED_WEEKS = 80
FIRST_WEEKS = 8


@dataclass(frozen=True)
class Stream:
    """Rows in the order of time, and how an agent decides them.

    >>> stream = dev_streams(seed=0)[0]
    >>> stream.name, stream.steps, stream.first_steps, len(stream.rows_of(0))
    ('rotating', 80, 8, 336)

    :param settings: of the agent: columns, actions, teacher, student.
    :param rows: ``observation_id`` (unique), ``observed_at`` (UTC, not decreasing), the columns of ``settings``,
        ``outcome`` (action index, int64; −1: never known) and ``known_at`` (when the outcome is known, UTC).
    :param step: time between two chances to respond; steps are counted from ``start``.
    :param min_step_rows: a step is prolonged by whole ``step`` until it has so many rows; rows at the end that are too
        few belong to the step before.
    :param begins_at: when step 0 begins (UTC), not after the first row; None: the midnight (UTC) before it.
    :param first_steps: steps before the first champion, whose rows it learns from.
    :param measure_note: what quality means on this stream, in a sentence.
    :param change_points: moments at which the concept begins to change, where they are known; for pages only.
    :param held_out: rows that are in no step, with ``outcome`` and ``known_from`` (the moment from which rows like them
        can occur); None: quality is measured on ``rows``.
    :param teacher_probs: answers of a teacher that was recorded, ``[len(rows), K]``; a row of NaN has none. None: the
        teachers of ``settings`` are asked.
    """

    name: str
    settings: AgentConfig
    rows: pd.DataFrame
    step: timedelta
    first_steps: int
    measure_note: str
    change_points: tuple[datetime, ...] = ()
    held_out: pd.DataFrame | None = None
    teacher_probs: Array | None = None
    min_step_rows: int = 0
    begins_at: pd.Timestamp | None = None

    @property
    def start(self) -> pd.Timestamp:
        """The moment at which step 0 begins."""
        first: pd.Timestamp = self.rows["observed_at"].iloc[0]
        return self.begins_at or first.floor("D")

    @property
    def steps(self) -> int:
        """Number of steps, the last of which may be incomplete."""
        return int(self.step_numbers()[-1]) + 1

    def step_numbers(self) -> Array:
        """The step of each row, int64 ``[len(rows)]``, not decreasing."""
        elapsed = (self.rows["observed_at"] - self.start) // pd.Timedelta(self.step)
        periods = elapsed.to_numpy(dtype=np.int64)
        return merge_periods(np.bincount(periods), self.min_step_rows)[periods]

    def rows_of(self, step: int) -> pd.DataFrame:
        """The rows of step ``step`` (0 … ``steps`` − 1); there may be none."""
        first, last = np.searchsorted(self.step_numbers(), [step, step + 1])
        return self.rows.iloc[first:last]


def merge_periods(counts: Array, min_rows: int) -> Array:
    """The step of each period, int64 ``[len(counts)]``: consecutive periods until a step has ``min_rows`` rows.

    >>> merge_periods(np.array([5, 0, 3, 9, 1]), min_rows=8)
    array([0, 0, 0, 1, 1])
    """
    steps, step, filled = np.zeros(len(counts), dtype=np.int64), 0, 0
    for period, count in enumerate(counts):
        steps[period] = step
        filled += count
        if filled >= min_rows:
            step, filled = step + 1, 0
    complete = steps.max() if filled == 0 else max(steps.max() - 1, 0)
    return np.minimum(steps, complete)


# --------------------------------------------------------------------------- settings


def agent_settings(
    name: str,
    actions: list[str],
    columns: Mapping[str, Mapping[str, Any]],
    teacher: str,
    student: Mapping[str, Any] | None = None,
    delay: str = "1d",
    **sections: Any,
) -> AgentConfig:
    """The settings of a stream's agent: defaults, but for its columns, its actions and its teacher.

    :param teacher: ``"module:Class"``.
    :param student: section ``student``; None: the default of a table.
    :param delay: until an outcome is known, such as ``"1d"``.
    :param sections: further sections of the agent file, such as ``distillation``.
    """
    return AgentConfig.model_validate(
        {
            "agent": name,
            "actions": actions,
            "observations": {"source": _SOURCE, "since": "1990-01-01T00:00:00Z", "columns": dict(columns)},
            "outcomes": {"source": _SOURCE, "delay": delay},
            "teachers": [
                {"kind": "python", "name": "teacher", "target": teacher, "settings": {"actions": len(actions)}}
            ],
            "student": dict(student or {"kind": "tabular"}),
            "windows": {"train": "26w", "test": "7d", "current": "7d"},
            "watch": {},
        }
        | sections
    )


def no_source(start: datetime, end: datetime) -> pd.DataFrame:
    """The source in the settings of a stream, whose rows are at hand: it cannot be called.

    :raises RuntimeError: always.
    """
    raise RuntimeError("the rows of a stream are in `Stream.rows`; it has no source")


_SOURCE = f"{__name__}:{no_source.__name__}"
_TEACHERS = "benchmarks.stream_teachers"
_LOG_LOSS = "log loss, with accuracy and AUC beside it"


def table_columns(features: pd.DataFrame) -> dict[str, dict[str, str]]:
    """The columns of a table for the agent file: numbers where they are numeric, else categories.

    >>> table_columns(pd.DataFrame({"age": [1.0], "ward": ["a"]}))
    {'age': {'type': 'number'}, 'ward': {'type': 'category'}}
    """
    numeric = set(features.select_dtypes("number").columns)
    return {str(name): {"type": "number" if name in numeric else "category"} for name in features.columns}


# --------------------------------------------------------------------------- generated streams


def generated_stream(
    name: str, features: pd.DataFrame, outcome: Array, rows_per_week: int, change_weeks: tuple[float, ...] = ()
) -> Stream:
    """A stream of two actions with as many rows each week, evenly spread over it; outcomes are known a day later.

    :param features: columns that the agent sees, ``[n]`` rows in the order of time.
    :param outcome: action indices ``[n]``, 0 or 1.
    :param change_weeks: when the concept begins to change, in weeks since the start.
    """
    spacing = WEEK / rows_per_week
    observed_at = FIRST_DAY + pd.to_timedelta(np.arange(len(features)) * spacing.total_seconds(), unit="s")
    rows = features.assign(
        observation_id=[f"{name}-{index}" for index in range(len(features))],
        observed_at=observed_at,
        outcome=outcome.astype(np.int64),
        known_at=observed_at + DAY,
    )
    return Stream(
        name,
        agent_settings(name, ["no", "yes"], table_columns(features), f"{_TEACHERS}:Boosting"),
        rows,
        WEEK,
        FIRST_WEEKS,
        _LOG_LOSS,
        tuple((FIRST_DAY + week * WEEK).to_pydatetime() for week in change_weeks),
    )


def dev_streams(seed: int) -> tuple[Stream, Stream, Stream]:
    """Three streams of 80 weeks for development: sudden and slow rotation, a slow threshold, and a recurring season."""
    return rotating(seed), moving_threshold(seed), two_seasons(seed)


def rotating(seed: int, weeks: int = GENERATED_WEEKS, per_week: int = 336) -> Stream:
    """A boundary that turns by about a degree a week and, three times, by 60° to 120° at once."""
    rng = np.random.default_rng([seed, 1])
    week = np.arange(weeks * per_week) // per_week
    x = rng.normal(size=(len(week), 6))
    jumps = np.sort((np.array([0.2, 0.45, 0.7]) + rng.uniform(0, 0.15, 3)) * weeks).astype(int)
    turns = rng.choice([-1, 1], 3) * rng.uniform(np.pi / 3, 2 * np.pi / 3, 3)
    angle = 0.02 * week + (turns * (week[:, None] >= jumps)).sum(axis=1)
    logits = 2.5 * (np.cos(angle) * x[:, 0] + np.sin(angle) * x[:, 1]) + x[:, 2] * x[:, 3]
    return generated_stream("rotating", _number_columns(x), _draw(rng, logits), per_week, tuple(map(float, jumps)))


def moving_threshold(seed: int, weeks: int = GENERATED_WEEKS, per_week: int = 210) -> Stream:
    """A fixed score, of which only the threshold moves: up and down within about 45 weeks, with a small random walk."""
    rng = np.random.default_rng([seed, 2])
    week = np.arange(weeks * per_week) // per_week
    x = rng.normal(size=(len(week), 5))
    site = rng.integers(0, 4, len(week))
    walk = np.cumsum(rng.normal(0, 0.12, weeks))
    intercept = 1.8 * np.sin(2 * np.pi * (np.arange(weeks) / 45 + rng.uniform())) + walk
    score = 1.6 * x[:, 0] - np.abs(x[:, 1]) + 0.8 * x[:, 2] + np.array([-1.0, 0.0, 0.6, 1.2])[site]
    features = _number_columns(x).assign(site=np.array(["north", "east", "south", "west"])[site])
    return generated_stream("threshold", features, _draw(rng, score + intercept[week]), per_week)


def two_seasons(seed: int, weeks: int = GENERATED_WEEKS, per_week: int = 700) -> Stream:
    """Two concepts that take turns every 9 to 14 weeks, and inputs that tell the season only in part."""
    rng = np.random.default_rng([seed, 3])
    week = np.arange(weeks * per_week) // per_week
    starts = np.cumsum(rng.integers(9, 15, weeks // 9))
    starts = starts[starts < weeks]
    second = (week[:, None] >= starts).sum(axis=1) % 2 == 1
    x = rng.normal(size=(len(week), 6))
    x[:, 0] += 0.8 * second
    shop = np.where(rng.uniform(size=len(week)) < np.where(second, 0.6, 0.3), "online", "counter")
    first_logits = 2 * x[:, 1] - 1.5 * x[:, 2] + 0.7 * x[:, 3] ** 2 - 0.7
    second_logits = -1.2 * x[:, 1] - 1.5 * x[:, 2] + 1.5 * x[:, 4]
    logits = np.where(second, second_logits, first_logits) + 0.6 * (shop == "online")
    features = _number_columns(x).assign(shop=shop)
    return generated_stream("seasons", features, _draw(rng, logits), per_week, tuple(map(float, starts)))


def _number_columns(x: Array) -> pd.DataFrame:
    return pd.DataFrame(x, columns=[f"x{index}" for index in range(x.shape[1])])


def _draw(rng: np.random.Generator, logits: Array) -> Array:
    """Outcomes 0 or 1 ``[n]``, of which 1 has the probability sigmoid(logits)."""
    return (rng.uniform(size=len(logits)) < 1 / (1 + np.exp(-logits))).astype(np.int64)


# --------------------------------------------------------------------------- the agents of examples/


def flights(step: timedelta = WEEK) -> Stream:
    """Late departures from New York, 2013: 52 weeks of some 6,500 rows, eight of them before the first champion."""
    start, end = flights_example.week_start(0), flights_example.week_start(52)
    observations, outcomes = flights_example.departures(start, end), flights_example.lateness(start, end)
    settings = load_file(_AGENTS / "flights.yaml")
    note = "AUC, with log loss and accuracy beside it"
    return _example_stream("flights", settings, observations, outcomes, step, FIRST_WEEKS, note, begins_at=start)


def router(step: timedelta = DAY, first_weeks: int = 8) -> Stream:
    """CLINC150's 150 intents, five domains of which arrive one by one from week 9 on (:mod:`examples.router`)."""
    start = router_example.FIRST_DAY
    end = start + router_example.WEEKS * WEEK
    observations, outcomes = router_example.sentences(start, end), router_example.intents(start, end)
    settings = load_file(_AGENTS / "router.yaml")
    arrivals = sorted({week for week in router_example.STAGES.values() if week})
    changes = tuple((start + week * WEEK).to_pydatetime() for week in arrivals)
    note = "accuracy, mean of the weeks; log loss beside it"
    return _example_stream("router", settings, observations, outcomes, step, first_weeks, note, changes)


_AGENTS = Path(__file__).parent.parent / "agents"


def _example_stream(
    name: str,
    settings: AgentConfig,
    observations: pd.DataFrame,
    outcomes: pd.DataFrame,
    step: timedelta,
    first_weeks: int,
    measure_note: str,
    change_points: tuple[datetime, ...] = (),
    begins_at: pd.Timestamp | None = None,
) -> Stream:
    known = outcomes[["observation_id", "known_at", "action"]]
    rows = observations.merge(known, on="observation_id", how="left", validate="one_to_one")
    rows["outcome"] = _action_indices(settings, rows["action"])
    rows = rows.drop(columns="action")
    first_steps = round(first_weeks * WEEK / step)
    return Stream(name, settings, rows, step, first_steps, measure_note, change_points, begins_at=begins_at)


def _action_indices(settings: AgentConfig, actions: pd.Series[Any]) -> Array:
    """Action indices, int64 ``[n]``; −1 for what is no action of the agent."""
    index = {action: number for number, action in enumerate(settings.actions)}
    return actions.map(index).fillna(-1).to_numpy(dtype=np.int64)


# --------------------------------------------------------------------------- real streams


def spam(step: timedelta = WEEK) -> Stream:
    """6,046 dated mails, June 2001 to December 2002 (SpamAssassin's corpus), with at least 100 in a step.

    Until July 2002 nearly all of them are spam; the first champion learns from the weeks until both classes are common
    (:data:`SPAM_FIRST_DAY`). Outcomes are known after a day.
    """
    mails = read_mails()
    settings = agent_settings(
        "spam",
        ["wanted", "spam"],
        {"text": {"type": "text", "max_length": 4000}},
        f"{_TEACHERS}:Words",
        {"kind": "text", "encoder": {"type": "bag", "width": 96}, "length": 256, "widths": []},
        windows={"train": "78w", "test": "7d", "current": "7d", "min_train_rows": 300},
    )
    rows = mails[["observation_id", "observed_at", "text"]].assign(
        outcome=mails["spam"].astype(np.int64), known_at=mails["observed_at"] + DAY
    )
    stream = Stream("spam", settings, rows, step, 1, _LOG_LOSS, min_step_rows=100)
    first = int((rows["observed_at"] < SPAM_FIRST_DAY).sum())
    return replace(stream, first_steps=int(stream.step_numbers()[first]))


SPAM_FIRST_DAY = pd.Timestamp("2002-07-29T00:00:00Z")
"""When the first champion of :func:`spam` begins to decide, after some 1,600 mails, a third of them wanted."""


def movielens(step: timedelta = WEEK, first_weeks: int = 4) -> Stream:
    """100,000 ratings, September 1997 to April 1998: will this user give this film four stars or more?

    The features are known at the moment (:func:`benchmarks.stream_files.parse_ratings`); so is the outcome at once.
    """
    ratings = read_ratings()
    features = ratings.drop(columns=["observation_id", "observed_at", "liked"])
    settings = agent_settings(
        "movielens", ["other", "liked"], table_columns(features), f"{_TEACHERS}:Boosting", delay="0s"
    )
    rows = ratings.drop(columns="liked").assign(
        outcome=ratings["liked"].astype(np.int64), known_at=ratings["observed_at"]
    )
    return Stream("movielens", settings, rows, step, round(first_weeks * WEEK / step), _LOG_LOSS)


BANKING_WEEKS = 24
BANKING_ARRIVALS = (0, 10, 17)
"""First week of each of the three groups of intents in :func:`banking`."""


def banking(variant: Literal["labels", "llm"] = "labels", seed: int = 0, step: timedelta = WEEK) -> Stream:
    """BANKING77's 10,003 training sentences in 24 made-up weeks; two of three groups of its 77 intents arrive later.

    Which intent belongs to which group, and when a sentence occurs, is decided by a hash with the seed. ``held_out``
    are the 3,080 test sentences, which occur never. Both variants have people's labels as outcomes.

    :param variant: "labels": the teacher is fitted on people's labels; "llm": ``teacher_probs`` and the column
        ``answer`` of ``held_out`` (action index, −1: none) are the recorded answers of a language model.
    """
    train, test = (_stage(read_banking(split, variant == "llm"), seed) for split in ("train", "test"))
    train = train[train["weeks"] < BANKING_WEEKS].sort_values("weeks", ignore_index=True)
    settings = agent_settings(
        f"banking_{variant}",
        sorted(train["action"].unique()),
        {"text": {"type": "text", "max_length": 500}},
        f"{_TEACHERS}:SentenceEncoder",
        {"kind": "text", "encoder": {"type": "bag", "width": 96}, "initialise": "teacher", "widths": []},
    )
    observed_at = FIRST_DAY + pd.to_timedelta((train["weeks"] * WEEK.total_seconds()).round(), unit="s")
    rows = pd.DataFrame(
        {
            "observation_id": [f"banking-{digest}" for digest in train["digest"]],
            "observed_at": observed_at,
            "text": train["text"],
            "outcome": _action_indices(settings, train["action"]),
            "known_at": observed_at + DAY,
        }
    )
    held_out = pd.DataFrame(
        {
            "observation_id": [f"banking-test-{digest}" for digest in test["digest"]],
            "text": test["text"],
            "outcome": _action_indices(settings, test["action"]),
            "known_from": FIRST_DAY + pd.to_timedelta(test["arrival"], unit="D") * 7,
        }
    )
    stream = Stream(
        f"banking_{variant}",
        settings,
        rows,
        step,
        round(FIRST_WEEKS * WEEK / step),
        "accuracy on sentences never seen, of the intents that have arrived",
        tuple((FIRST_DAY + week * WEEK).to_pydatetime() for week in BANKING_ARRIVALS[1:]),
        held_out,
    )
    if variant == "labels":
        return stream
    held_out["answer"] = _action_indices(settings, test["answer"])
    return replace(stream, teacher_probs=_one_hot(_action_indices(settings, train["answer"]), len(settings.actions)))


def _stage(sentences: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Sentences with ``digest`` (unique), ``arrival`` (week of their intent's group) and ``weeks`` (their moment)."""
    intents = sorted(sentences["action"].unique(), key=lambda intent: _digest(seed, intent))
    groups = {intent: index * len(BANKING_ARRIVALS) // len(intents) for index, intent in enumerate(intents)}
    rows = sentences.drop_duplicates("text", ignore_index=True)
    digests = [_digest(seed, text) for text in rows["text"]]
    fraction = np.array([int(digest[:13], 16) / 16**13 for digest in digests])  # uniform in 0 … 1
    arrival = np.array(BANKING_ARRIVALS)[rows["action"].map(groups).to_numpy(dtype=np.int64)]
    return rows.assign(
        digest=[digest[:12] for digest in digests],
        arrival=arrival,
        weeks=arrival + fraction * (BANKING_WEEKS - arrival),
    )


def _digest(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed} {text}".encode()).hexdigest()


def _one_hot(answers: Array, actions: int) -> Array:
    """Probabilities ``[n, K]`` of answers ``[n]``; a row of NaN for −1."""
    return np.where(answers[:, None] >= 0, np.eye(actions)[np.maximum(answers, 0)], np.nan)


# --------------------------------------------------------------------------- river's generators


@dataclass(frozen=True)
class Generator:
    """One of river's generators.

    :param concepts: keyword arguments of four concepts, in the order in which they hold.
    :param settings: keyword arguments that all concepts share.
    :param categories: columns that are codes of categories.
    """

    concepts: tuple[dict[str, Any], ...]
    settings: dict[str, Any]
    categories: tuple[str, ...] = ()


GENERATORS = {
    "SEA": Generator(tuple({"variant": variant} for variant in (0, 1, 2, 3)), {"noise": 0.1}),
    "Agrawal": Generator(
        tuple({"classification_function": number} for number in (0, 3, 6, 8)),
        {"perturbation": 0.1},
        ("elevel", "car", "zipcode"),
    ),
    "Hyperplane": Generator(({}, {}, {}, {}), {"n_features": 10, "noise_percentage": 0.05}),
}
DRIFTS = ("sudden", "gradual", "recurring")
RIVER_KINDS = tuple(f"{generator.lower()}_{drift}" for generator in GENERATORS for drift in DRIFTS)
"""Names of the nine streams of :func:`river_stream`."""

_CHANGES = {"sudden": (0.25, 0.5, 0.75), "gradual": (0.25, 0.5, 0.75), "recurring": (0.22, 0.42, 0.62, 0.82)}
_ORDERS = {"sudden": [0, 1, 2, 3], "gradual": [0, 1, 2, 3], "recurring": [0, 2, 0, 2, 0]}
_GRADUAL_WEEKS = 10
_RIVER = ("river==0.26.1",)


def river_stream(kind: str, seed: int, weeks: int = GENERATED_WEEKS, per_week: int = 336) -> Stream:
    """Rows of SEA, Agrawal or the hyperplane (Bifet et al., river) whose concept changes.

    Sudden: three changes, each within a few rows; gradual: three transitions of ten weeks each, and the hyperplane also
    turns all the time; recurring: two concepts in turn, four changes. The seed moves each change by up to three weeks.

    :param kind: one of :data:`RIVER_KINDS`.
    :raises KeyError: for another kind.
    """
    generator, drift = {f"{name.lower()}_{drift}": (name, drift) for name in GENERATORS for drift in DRIFTS}[kind]
    rng = np.random.default_rng([seed, RIVER_KINDS.index(kind)])
    moved = np.array(_CHANGES[drift]) * weeks + rng.uniform(-3, 3, len(_CHANGES[drift])) * weeks / GENERATED_WEEKS
    job = {
        "generator": generator,
        "concepts": _concepts(generator, drift, seed),
        "order": _ORDERS[drift],
        "positions": [round(week * per_week) for week in moved],
        "width": _GRADUAL_WEEKS * per_week if drift == "gradual" else 1,
        "rows": weeks * per_week,
        "seed": seed,
    }
    arrays = np.load(_generate(job))
    features = pd.DataFrame(arrays["inputs"], columns=[_column(name) for name in arrays["names"]])
    for name in GENERATORS[generator].categories:
        features[name] = "c" + features[name].astype(int).astype(str)
    starts = moved - (_GRADUAL_WEEKS / 2 if drift == "gradual" else 0)
    return generated_stream(kind, features, arrays["labels"], per_week, tuple(float(week) for week in starts))


def _concepts(generator: str, drift: str, seed: int) -> list[dict[str, Any]]:
    """Keyword arguments of each concept; the seeds of the concepts differ, and with them the hyperplane's weights."""
    shared = GENERATORS[generator].settings
    turning = {"mag_change": 0.001, "n_drift_features": 5} if (generator, drift) == ("Hyperplane", "gradual") else {}
    concepts = GENERATORS[generator].concepts
    return [{**shared, **turning, **concept, "seed": 1000 * seed + index} for index, concept in enumerate(concepts)]


def _generate(job: Mapping[str, Any]) -> Path:
    """The file with the rows of a job; made in river's own environment, once."""
    text = json.dumps(job, sort_keys=True)
    path = cache_path(f"river/{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.npz")
        script = Path(__file__).parent / "stream_peers" / "generate.py"
        subprocess.run([peer("river", _RIVER), script, partial], input=text, text=True, check=True)
        partial.replace(path)
    return path


def _column(name: str) -> str:
    return f"x{name}" if name.isdigit() else str(name)
