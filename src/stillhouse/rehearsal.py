"""The checks of ``stillhouse check``: read the sources, estimate the windows, and test every part."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.agreement import rows_needed as audited_rows_needed
from stillhouse.compress.search.greedy import search
from stillhouse.compress.variants import target_from_student, variant_writer
from stillhouse.config import AgentConfig, CascadeSettings, Compression, Fp32, fit_defaults, leaves
from stillhouse.config.base import format_duration
from stillhouse.data_contract import count_by_rule, examine, join_names
from stillhouse.distill.students import columns_of, new_student
from stillhouse.distill.train import distil
from stillhouse.errors import ConfigError, DataError, PartError, StillhouseError, WindowError
from stillhouse.evaluate.gate import first_look_confidence
from stillhouse.evaluate.power import describe_power, provable_margin, rows_needed
from stillhouse.knowledge import KnowledgeBase, content_keys, tidy, tidy_outcomes
from stillhouse.parts import rehearsing, resolve
from stillhouse.quality import get_measure
from stillhouse.records import ScoredUnit, SizeLimits, Window
from stillhouse.refreshing.data import build_training_set
from stillhouse.registry.foreign import ForeignModels
from stillhouse.shown import escape_line
from stillhouse.stats import cluster_ids, replace_non_finite
from stillhouse.teachers import ensemble
from stillhouse.variant import Variant, encode

__all__ = ["rehearse"]

_MAX_SHOWN_ACTIONS = 8
_PASS_ROWS = 1000
"""Rows of the short pass for an agent without text columns."""
_PASS_TEXTS = 250
"""Rows of the short pass for an agent with text columns, which take longer."""
_REMOTE_ROWS = 3
"""Rows that a remote teacher answers, since each may cost money; its answers are repeated for the other rows."""
_TIMED_ROWS = 8
"""Rows that a local teacher answers to measure its speed."""
_TEACHER_SECONDS = 2.0
"""Time that a local teacher may take for the rows of the short pass."""
_SOURCE_PERIOD = timedelta(weeks=2)
"""Period that is read from the sources, or the newest rows of the knowledge base."""
_STORED = "knowledge base"
_MIN_ROWS = 100


def rehearse(config: AgentConfig, rows: int | None = None) -> Iterator[str]:
    """Check sources, data contract, windows, teachers, student and variant in turn; yield a line for each passed check.

    :param rows: rows of the short pass through teachers and student; contract and windows use all rows of two weeks.
    :raises StillhouseError: at the first check that fails, with the remedy.
    """
    _require_budget(config)
    KnowledgeBase(config).tables.require_column_types()
    start = _find_start(config)
    observed = _read_observations(config, start)
    count = len(config.observations.columns)
    source = config.observations.source or _STORED
    yield f"{source}: {len(observed)} observations with {count} column{'s' * (count != 1)}"
    labelled = _read_labelled(config, observed, start)
    source = config.outcomes.source if config.outcomes else _STORED
    yield f"{source}: {len(labelled)} {config.words.labels} ({_describe_shares(config, labelled['outcome'])})"
    window = _observed_window(config, observed, start)
    yield _check_contract(config, observed, window)
    yield _check_windows(config, observed, labelled, window)
    yield _describe_defaults(config, labelled, window)
    yield _check_power(config, labelled, window)
    with rehearsing():
        yield from _short_pass(
            config, _spread_over_time(labelled, rows or (_PASS_TEXTS if config.observations.texts else _PASS_ROWS))
        )


def _short_pass(config: AgentConfig, labelled: pd.DataFrame) -> Iterator[str]:
    """Run teachers and a student on the newer half of ``labelled``; fitted teachers are fitted on the older half."""
    middle = labelled["observed_at"].iloc[len(labelled) // 2]
    window = Window(name="check", start=labelled["observed_at"].iloc[0], end=middle)
    past, future = labelled[labelled["observed_at"] < middle], labelled[labelled["observed_at"] >= middle]
    with tempfile.TemporaryDirectory() as folder:
        fitted = ensemble.fit(config, past, window, Path(folder) / "teacher", ForeignModels())
        teachers = ensemble.load(Path(folder) / "teacher", config, ForeignModels())
        teacher_probs, seconds = _query_sample(teachers, future)
        probs = np.resize(teacher_probs, (len(future), len(config.actions)))
        names = ", ".join(member.name for member in teachers.members)
        yield f"teachers {names}: {len(teacher_probs)} rows answered, saved and loaded again ({fitted.bytes:,} bytes)"

        initial = teachers.text_encoder() if config.student.initialised_by_teacher else None
        columns = columns_of(config, future, initial)
        features = teachers.features(future.head(len(teacher_probs)))
        if features is not None:
            features = np.resize(features, (len(future), features.shape[1]))
        labels = future["outcome"].to_numpy()
        training_set = build_training_set(encode(future, columns), probs, labels, columns, features=features)
        measure = get_measure(config).for_labels(labels, len(config.actions))
        student = new_student(config, columns, training_set.x.numpy(), initial)
        distil(student, training_set, config.distillation, epochs=1)
        target = target_from_student(
            student,
            columns,
            config.actions,
            calibration=lambda columns: encode(future, columns),
            validation=lambda columns: encode(future, columns),
            quality=lambda probs: measure.points(replace_non_finite(probs, labels), labels, future),
        )
        fp32_only = Compression(recipes=((Fp32(method="fp32"),),), search=None)
        pack = variant_writer(config.agent, config.actions, {})
        variant = search(lambda: target, fp32_only, SizeLimits(), pack, Path(folder)).reference
        deployed, named = Variant(variant.folder), get_measure(config)
        student_probs = deployed.predict_proba(future)
        played = named.play(deployed.predict_proba, future)
    result = f"learns, becomes ONNX ({variant.bytes:,} bytes) and decides {len(student_probs)} rows"
    yield f"student ({config.student.kind}): {result}"
    if played is not None:
        yield f"quality: {len(played)} episodes played, {named.title} {played.mean():.4g} {named.unit}".rstrip()
    cascade = config.runtime.cascade
    if cascade is not None:
        yield _check_cascade(config, cascade, seconds, student_probs.max(axis=1))


def _query_sample(teachers: ensemble.Ensemble, rows: pd.DataFrame) -> tuple[np.ndarray[Any, Any], float]:
    """Query the teachers about the first m of ``rows``, as many as take about two seconds.

    :returns: probabilities ``[m, K]``, and the seconds for one row.
    """
    start = perf_counter()
    if not teachers.local:
        probs = teachers.ask(rows.head(_REMOTE_ROWS))
        return probs, perf_counter() - start
    sample = rows.head(_TIMED_ROWS)
    teachers.ask(sample)  # the first query may load a model
    start = perf_counter()
    probs = teachers.ask(sample)
    affordable = int(len(sample) * _TEACHER_SECONDS / max(perf_counter() - start, 1e-6))
    if affordable > len(sample):
        probs = teachers.ask(rows.head(affordable))
    start = perf_counter()
    teachers.ask(rows.head(1))
    return probs, perf_counter() - start


def _spread_over_time(rows: pd.DataFrame, limit: int) -> pd.DataFrame:
    """At most ``limit`` of ``rows``, evenly spread over time."""
    return rows.iloc[np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(np.int64)].reset_index(drop=True)


# --------------------------------------------------------------------------- data contract and windows


def _observed_window(config: AgentConfig, observed: pd.DataFrame, start: datetime) -> Window:
    """The period of the rows that were read; it ends now, or at the newest row if that is the agent's clock."""
    newest = observed["observed_at"].iloc[-1].to_pydatetime()
    end = min(start + _SOURCE_PERIOD, max(datetime.now(UTC), newest + timedelta(microseconds=1)))
    if config.watch.clock == "newest_observation":
        end = min(end, newest + timedelta(microseconds=1))
    return Window(name="check", start=start, end=end)


def _check_contract(config: AgentConfig, observed: pd.DataFrame, window: Window) -> str:
    """:raises DataError: if a refresh would refuse these rows."""
    result = examine(observed, window, config.observations)
    if result.refused:
        raise DataError(
            f"{config.file}: observations: the rows from {window.start:%Y-%m-%d} to {window.end:%Y-%m-%d %H:%M} break "
            f"the data contract, and a refresh on such rows is refused: {'; '.join(result.refused)}"
        )
    if not result.reasons:
        return f"data contract: all {len(observed):,} rows keep it"
    rules = [
        f"{column}: {rule} ({count:,})" for (column, rule), count in count_by_rule(result.reasons.values()).items()
    ]
    return f"data contract: {len(result.reasons):,} of {len(observed):,} rows would be set aside: {join_names(rules)}"


def _check_windows(config: AgentConfig, observed: pd.DataFrame, labelled: pd.DataFrame, window: Window) -> str:
    """:raises WindowError: if, at the rate of these rows, the windows of a bootstrap or a watch would hold too few."""
    windows, min_rows = config.windows, config.observations.min_rows
    labelled_rate, observed_rate = _rows_per_day(labelled, window), _rows_per_day(observed, window)
    train, test = (_to_days(length) for length in _window_lengths(config, labelled, window))
    train_rows, test_rows = min(labelled_rate * train, windows.max_train_rows or math.inf), labelled_rate * test
    if train_rows < config.min_train_rows:
        raise _window_error(
            config,
            "train",
            f"{train:.3g} days of it",
            train_rows,
            "windows.min_train_rows",
            config.min_train_rows,
            labelled_rate,
        )
    if test_rows < min_rows:
        raise _window_error(
            config, "test", f"{test:.3g} days", test_rows, "observations.min_rows", min_rows, labelled_rate
        )
    if isinstance(windows.current, timedelta):
        current = _to_days(windows.current)
        if (current_rows := observed_rate * current) < min_rows:
            raise _window_error(
                config, "current", f"{current:.3g} days", current_rows, "observations.min_rows", min_rows, observed_rate
            )
    fitted = fit_defaults(config.distillation, round(train_rows), timedelta(days=train))
    if timedelta(days=train) < fitted.validation_every * fitted.validation_block:
        raise WindowError(
            f"{config.file}: windows.train: {train:.3g} days may contain no validation rows "
            f"({fitted.validation_text}): lengthen it, or lower or remove `distillation.validation_every`"
        )
    return (
        f"windows: {labelled_rate:,.4g} rows with {config.words.labels} a day: about {train_rows:,.0f} to learn from, "
        f"{test_rows:,.0f} to judge on"
    )


def _describe_defaults(config: AgentConfig, labelled: pd.DataFrame, window: Window) -> str:
    """The settings of the distillation, set or chosen, for as many rows as the training window would hold."""
    train, test = _window_lengths(config, labelled, window)
    rows = round(min(_rows_per_day(labelled, window) * _to_days(train), config.windows.max_train_rows or math.inf))
    fitted = fit_defaults(config.distillation, rows, train)
    chosen = "test window" if config.windows.test else "chosen test window"
    return (
        f"distillation: for {rows:,} rows: batches of {fitted.batch_size:,}, {fitted.epochs} epochs, {fitted.folds} "
        f"folds, outcome_weight {fitted.outcome_weight:g}; {fitted.validation_text} validates; {chosen} "
        f"{format_duration(test)}"
    )


def _window_lengths(config: AgentConfig, labelled: pd.DataFrame, window: Window) -> tuple[timedelta, timedelta]:
    """The lengths of the training and the test window; shorter than set if a replayed history ends before."""
    windows, span = config.windows, config.windows.train + config.windows.longest_test
    if config.watch.clock == "newest_observation" and window.end < window.start + _SOURCE_PERIOD - timedelta(days=1):
        # a replayed history of less than two weeks: no more rows will come
        span = min(span, max(timedelta(0), window.end - window.start - config.label_delay))
    rows = round(_rows_per_day(labelled, window) * _to_days(span))
    test = windows.fit_test(rows, span, config.observations.min_rows)
    return min(windows.train, max(timedelta(0), span - test)), test


def _window_error(
    config: AgentConfig, window: str, length: str, rows: float, key: str, min_rows: int, rate: float
) -> WindowError:
    return WindowError(
        f"{config.file}: windows.{window}: at {rate:.3g} rows a day, {length} hold about {rows:,.0f} rows, and `{key}` "
        f"requires {min_rows:,}: lengthen the window, or lower `{key}`"
    )


def _check_power(config: AgentConfig, labelled: pd.DataFrame, window: Window) -> str:
    """The smallest margin that the gate can prove on a test window with rows at this rate."""
    promotion, days = config.promotion, _to_days(_window_lengths(config, labelled, window)[1])
    rows = max(1, round(_rows_per_day(labelled, window) * days))
    clusters = rows
    if promotion.cluster:
        share = len(np.unique(cluster_ids(labelled["observed_at"], promotion.cluster, window.start))) / len(labelled)
        clusters = max(1, round(share * rows))
    measure, confidence = get_measure(config), first_look_confidence(promotion.confidence)
    on: ScoredUnit = "rows"
    if measure.episodes is not None:
        on, rows = "episodes", measure.episodes.count
        clusters = rows
    rarer = None  # rows of the rarer label
    if measure.is_pooled:
        rarer = round(
            rows * float(labelled["outcome"].value_counts(normalize=True).reindex([0, 1], fill_value=0).min())
        )
    smallest_margin = provable_margin(rows, clusters, confidence, rarer=rarer, span=measure.span)
    text = f"promotion: {describe_power(rows, clusters, confidence, rarer=rarer, span=measure.span, on=on)}"
    margin = config.margins.test
    if margin >= smallest_margin:
        return text
    text += (
        f", and `promotion.non_inferiority_margin` is {margin:g}: a challenger that is no better would not be promoted "
        "at once"
    )
    needed = rows_needed(margin, confidence, span=measure.span)
    if needed is None:
        return text
    if measure.episodes is not None:
        return f"{text}. Raise `quality.own.episodes` to {needed:,}, or raise the margin"
    weeks = math.ceil(days / 7 * needed / max(1, min(rows, clusters) if rarer is None else rarer))
    return f"{text}. Lengthen `windows.test` to about {weeks:,}w, or raise the margin"


def _rows_per_day(rows: pd.DataFrame, window: Window) -> float:
    return len(rows) / max(_to_days(window.end - window.start), 1e-9)


def _to_days(length: timedelta) -> float:
    return length / timedelta(days=1)


# --------------------------------------------------------------------------- budgets and sources


def _require_budget(config: AgentConfig) -> None:
    """:raises ConfigError: if the cascade may query a teacher that costs money without any limit per day."""
    cascade = config.runtime.cascade
    if cascade is None or cascade.cost_per_day is not None or cascade.calls_per_day is not None:
        return
    priced = [leaf.name for leaf in leaves(config.teachers) if leaf.teacher.costs_money]
    if priced:
        raise ConfigError(
            f"{config.file}: runtime.cascade: teacher {priced[0]!r} costs money, and neither "
            "`calls_per_day` nor `cost_per_day` limits how often the cascade queries it: set one of them"
        )


def _check_cascade(
    config: AgentConfig, cascade: CascadeSettings, seconds: float, confidences: np.ndarray[Any, Any]
) -> str:
    """Describe what the cascade would do with the rows of the short pass.

    :param seconds: time of the teachers for one row.
    :param confidences: the student's largest probability of each row, ``[n]``.
    :raises ConfigError: if the teachers need more time for a row than the cascade allows.
    """
    limit = cascade.timeout.total_seconds()
    if seconds > limit:
        raise ConfigError(
            f"{config.file}: runtime.cascade.timeout: the teachers took {seconds:.2g} s to answer, and "
            f"the limit is {limit:g} s, so the student would always decide: raise the limit, or remove the cascade"
        )
    speed = f"cascade: the teacher answers in {1000 * seconds:.0f} ms"
    if (promise := cascade.promise) is not None:
        return (
            f"{speed}, and answers all rows until at least {audited_rows_needed(promise)} audited rows prove an "
            f"agreement of {promise.agreement:.4g}"
        )
    uncertain = (confidences < (cascade.below or 0.0)).mean()
    return f"{speed}; this student, trained in one short pass, would query it for {uncertain:.0%} of the rows"


def _find_start(config: AgentConfig) -> datetime:
    """Where the two weeks begin that are read: ``observations.since``; without a source, those of the newest rows."""
    if config.observations.source is not None and config.observations.since is not None:
        return config.observations.since
    base = KnowledgeBase(config)
    until = base.observed_until()
    if until is None:
        raise WindowError(
            f"{config.file}: observations: the agent has no source, and its knowledge base no rows yet: send it "
            "observations, or run `stillhouse import`, and check again"
        )
    return max(base.observed_since(until), until - _SOURCE_PERIOD)


def _read_observations(config: AgentConfig, start: datetime) -> pd.DataFrame:
    if config.observations.source is None:
        stored = KnowledgeBase(config)
        rows = stored.read_observations(stored.window("check", start, start + _SOURCE_PERIOD))
        if len(rows) < _MIN_ROWS:
            raise WindowError(
                f"{config.file}: observations: the knowledge base has {len(rows)} rows of the two weeks from "
                f"{start:%Y-%m-%d}, and {_MIN_ROWS} are needed: send it more, and check again"
            )
        return rows
    where = f"{config.file}: observations.source"
    rows = _call_source(resolve(config.observations.source, where=where, folder=config.folder), start, where)
    tidied = tidy(rows, config).sort_values("observed_at", kind="stable", ignore_index=True)
    if len(tidied) < _MIN_ROWS:
        raise WindowError(
            f"{where} returns {len(tidied)} rows for the two weeks from {start:%Y-%m-%d}, and {_MIN_ROWS} "
            "are needed: set `observations.since` to a time after which there are rows"
        )
    if tidied["observation_id"].duplicated().any():
        raise PartError(f"{where} returns the same observation_id more than once")
    return tidied.assign(content_key=content_keys(tidied, config))


def _read_labelled(config: AgentConfig, observed: pd.DataFrame, start: datetime) -> pd.DataFrame:
    if config.outcomes is None:
        return _read_recorded_answers(config, observed, start)
    where = f"{config.file}: outcomes.source"
    outcomes = _call_source(resolve(config.outcomes.source, where=where, folder=config.folder), start, where)
    missing = {"observation_id", "observed_at", "known_at", "action"} - set(outcomes.columns)
    if missing:
        raise PartError(f"{where} lacks the columns {sorted(missing)}")
    outcomes = tidy_outcomes(outcomes, config)
    if unknown := sorted(set(outcomes["action"]) - set(config.actions)):
        raise PartError(f"{where} gives actions {unknown}, which `actions` {list(config.actions)} does not have")
    index = {action: i for i, action in enumerate(config.actions)}
    labelled = observed.merge(outcomes[["observation_id", "action"]], on="observation_id")
    labelled["outcome"] = labelled["action"].map(index).astype(np.int64)
    if len(labelled) < len(observed) // 2:
        raise PartError(
            f"{where} has outcomes for {len(labelled)} of {len(observed)} observations: do the observation_ids match?"
        )
    return labelled


def _read_recorded_answers(config: AgentConfig, observed: pd.DataFrame, start: datetime) -> pd.DataFrame:
    """The observed rows with an answer of the teacher that was recorded without regard to the champion."""
    base = KnowledgeBase(config)
    window = base.window("check", start, start + _SOURCE_PERIOD)
    rows = base.join_labels(observed.drop_duplicates("observation_id"), window, datetime.now(UTC))
    labelled = rows[rows["outcome"] >= 0].reset_index(drop=True)
    if len(labelled) < _MIN_ROWS:
        raise WindowError(
            f"{config.file}: outcomes: the agent has none, and its knowledge base has answers of its teacher to "
            f"{len(labelled)} of {len(observed)} rows since {start:%Y-%m-%d}; {_MIN_ROWS} are needed: record more, "
            "or add the section `outcomes`"
        )
    return labelled


def _describe_shares(config: AgentConfig, outcomes: pd.Series) -> str:
    """The share of each action among the outcomes; for many actions, of the most frequent ones."""
    shares = {escape_line(action): float((outcomes == i).mean()) for i, action in enumerate(config.actions)}
    if len(shares) <= _MAX_SHOWN_ACTIONS:
        return ", ".join(f"{action} {share:.0%}" for action, share in shares.items())
    most = sorted(shares, key=lambda action: -shares[action])[:3]
    named = ", ".join(f"{action} {shares[action]:.1%}" for action in most)
    return f"most often {named}; {sum(share > 0 for share in shares.values())} of {len(shares)} actions"


def _call_source(source: Any, start: datetime, where: str) -> pd.DataFrame:
    try:
        rows = source(start, start + _SOURCE_PERIOD)
    except StillhouseError:
        raise
    except Exception as error:
        raise PartError(
            f"{where} fails for the two weeks from {start:%Y-%m-%d}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(rows, pd.DataFrame):
        raise PartError(f"{where} returns a {type(rows).__name__}, not a pandas DataFrame")
    return rows
