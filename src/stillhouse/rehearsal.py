"""One tiny pass through every part that an agent file names, before anything real depends on it."""

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

from stillhouse.compress.search import search
from stillhouse.compress.variants import student_subject, variant_pack
from stillhouse.config import AgentConfig, Cascade, Compression, Fp32, leaves
from stillhouse.data_contract import counted, examine, listed
from stillhouse.distill.students import columns_of, new_student
from stillhouse.distill.train import distil
from stillhouse.errors import ConfigError, DataError, PartError, StillhouseError, WindowError
from stillhouse.evaluate.power import describe_power, provable_margin, rows_needed
from stillhouse.evaluate.scorecard import quality
from stillhouse.knowledge import KnowledgeBase, content_keys, tidy, tidy_outcomes
from stillhouse.parts import rehearsing, resolve
from stillhouse.records import SizeLimits, Window
from stillhouse.refreshing.data import lesson_of
from stillhouse.registry.foreign import ForeignModels
from stillhouse.shown import shown
from stillhouse.stats import cluster_ids
from stillhouse.teachers import ensemble
from stillhouse.variant import Variant, encode

__all__ = ["rehearse"]

_SHOWN_ACTIONS = 8
_ROWS = 1000  # of the tiny pass; texts take longer
_TEXTS = 250
_PAID_ROWS = 3  # an endpoint costs money: its few answers stand in for all, for parts are tried here and not quality
_TRIED_ROWS = 8  # that show how long a teacher on this machine takes
_ASKING_SECONDS = 2.0  # that it may take in all
_LOOKED_AT = timedelta(weeks=2)  # of the source


def rehearse(config: AgentConfig, rows: int | None = None) -> Iterator[str]:
    """Sources, contract, windows, teachers, student and variant in turn; yields what was found to be in order.

    :param rows: of the tiny pass through teachers and student; the contract and the windows see all of two weeks.
    :raises StillhouseError: the first thing that is not in order, and what to do about it.
    """
    _refuse_open_purse(config)
    KnowledgeBase(config).require_types()
    observed = _observations(config)
    count = len(config.observations.columns)
    yield f"{config.observations.source}: {len(observed)} observations with {count} column{'s' * (count != 1)}"
    labelled = _labelled(config, observed)
    yield f"{config.outcomes.source}: {len(labelled)} outcomes ({_shares(config, labelled['outcome'])})"
    window = _lived(config, observed)
    yield _contract(config, observed, window)
    yield _windows(config, observed, labelled, window)
    yield _power(config, labelled, window)
    with rehearsing():
        yield from _tiny_pass(config, _spread(labelled, rows or (_TEXTS if config.observations.texts else _ROWS)))


def _tiny_pass(config: AgentConfig, labelled: pd.DataFrame) -> Iterator[str]:
    """Teachers and a student on the newer half of ``labelled``, teachers that learn fitted on the older."""
    half = labelled["observed_at"].iloc[len(labelled) // 2]
    window = Window(name="check", start=labelled["observed_at"].iloc[0], end=half)
    past, future = labelled[labelled["observed_at"] < half], labelled[labelled["observed_at"] >= half]
    with tempfile.TemporaryDirectory() as folder:
        fitted = ensemble.fit(config, past, window, Path(folder) / "teacher", ForeignModels())
        teachers = ensemble.load(Path(folder) / "teacher", config, ForeignModels())
        said, seconds = _ask_some(teachers, future)
        knowledge = np.resize(said, (len(future), len(config.actions)))
        names = ", ".join(member.name for member in teachers.members)
        yield f"teachers {names}: {len(said)} rows answered, saved and loaded again ({fitted.bytes:,} bytes)"

        initial = teachers.text_encoder() if config.begins_like_teacher else None
        columns = columns_of(config, future, initial)
        features = teachers.features(future.head(len(said)))
        if features is not None:
            features = np.resize(features, (len(future), features.shape[1]))
        labels = future["outcome"].to_numpy()
        lesson = lesson_of(encode(future, columns), knowledge, labels, columns, features=features)
        student = new_student(config, columns, lesson.x.numpy(), initial)
        distil(student, lesson, config.distillation, epochs=1)
        subject = student_subject(
            student,
            columns,
            config.actions,
            calibration=lambda columns: encode(future, columns),
            judged=lambda columns: encode(future, columns),
            quality=lambda said: quality(said, labels).score,
        )
        plain = Compression(recipes=((Fp32(method="fp32"),),), search=None)
        pack = variant_pack(config.agent, config.actions, {})
        variant = search(lambda: subject, plain, SizeLimits(), pack, Path(folder)).reference
        decided = Variant(variant.folder).predict_proba(future)
    made = f"learns, becomes ONNX ({variant.bytes:,} bytes) and decides {len(decided)} rows"
    yield f"student ({config.student.kind}): {made}"
    if config.runtime.cascade is not None:
        yield _cascade(
            config, config.runtime.cascade, seconds, float((decided.max(axis=1) < config.runtime.cascade.below).mean())
        )


def _ask_some(teachers: ensemble.Ensemble, rows: pd.DataFrame) -> tuple[np.ndarray[Any, Any], float]:
    """Answers about the first of ``rows``, ``[m, K]``: as many as take no more than moments; and the seconds of one."""
    began = perf_counter()
    if not teachers.local:
        said = teachers.ask(rows.head(_PAID_ROWS))
        return said, perf_counter() - began
    tried = rows.head(_TRIED_ROWS)
    teachers.ask(tried)  # the first question may load a model
    began = perf_counter()
    said = teachers.ask(tried)
    able = int(len(tried) * _ASKING_SECONDS / max(perf_counter() - began, 1e-6))
    if able > len(tried):
        said = teachers.ask(rows.head(able))
    began = perf_counter()
    teachers.ask(rows.head(1))
    return said, perf_counter() - began


def _spread(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most ``most`` of ``rows``, evenly over their time."""
    return rows.iloc[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)].reset_index(drop=True)


# --------------------------------------------------------------------------- the contract, and what windows will hold


def _lived(config: AgentConfig, observed: pd.DataFrame) -> Window:
    """What was looked at of the agent's life: up to now, and to the newest row where that is the clock."""
    start, newest = config.observations.since, observed["observed_at"].iloc[-1].to_pydatetime()
    end = min(start + _LOOKED_AT, max(datetime.now(UTC), newest + timedelta(microseconds=1)))
    if config.watch.clock == "newest_observation":
        end = min(end, newest + timedelta(microseconds=1))
    return Window(name="check", start=start, end=end)


def _contract(config: AgentConfig, observed: pd.DataFrame, window: Window) -> str:
    """:raises DataError: if a refresh would refuse these rows."""
    found = examine(observed, window, config.observations)
    if found.refused:
        raise DataError(
            f"{config.file}: observations: the rows from {window.start:%Y-%m-%d} to {window.end:%Y-%m-%d %H:%M} break "
            f"the data contract, and a refresh on such rows is refused: {'; '.join(found.refused)}"
        )
    if not found.reasons:
        return f"data contract: all {len(observed):,} rows keep it"
    rules = [f"{column}: {rule} ({count:,})" for (column, rule), count in counted(found.reasons.values()).items()]
    return f"data contract: {len(found.reasons):,} of {len(observed):,} rows would be set aside: {listed(rules)}"


def _windows(config: AgentConfig, observed: pd.DataFrame, labelled: pd.DataFrame, window: Window) -> str:
    """:raises WindowError: if, at the rate of these rows, the windows of a bootstrap or a watch would hold too few."""
    windows, least = config.windows, config.observations.min_rows
    rate, seen = _a_day(labelled, window), _a_day(observed, window)
    train, test = _days(windows.train), _days(windows.test)
    if config.watch.clock == "newest_observation" and window.end < window.start + _LOOKED_AT - timedelta(days=1):
        train = min(train, max(0.0, _days(window.end - window.start - config.outcomes.delay) - test))  # no more come
    learned, judged = min(rate * train, windows.max_train_rows or math.inf), rate * test
    if learned < windows.min_train_rows:
        raise _too_few(
            config, "train", f"{train:.3g} days of it", learned, "windows.min_train_rows", windows.min_train_rows, rate
        )
    if judged < least:
        raise _too_few(config, "test", f"{test:.3g} days", judged, "observations.min_rows", least, rate)
    if isinstance(windows.current, timedelta) and (watched := seen * _days(windows.current)) < least:
        raise _too_few(
            config, "current", f"{_days(windows.current):.3g} days", watched, "observations.min_rows", least, seen
        )
    if train < config.distillation.validation_every:
        raise WindowError(
            f"{config.file}: windows.train: {train:.3g} days may hold none of the days kept to choose among variants "
            f"(every {config.distillation.validation_every}th): lengthen it, or lower `distillation.validation_every`"
        )
    return (
        f"windows: {rate:,.4g} rows with outcomes a day: about {learned:,.0f} to learn from, {judged:,.0f} to judge on"
    )


def _too_few(
    config: AgentConfig, window: str, length: str, rows: float, key: str, least: int, rate: float
) -> WindowError:
    return WindowError(
        f"{config.file}: windows.{window}: at {rate:.3g} rows a day, {length} hold about {rows:,.0f} rows, and `{key}` "
        f"asks for {least:,}: lengthen the window, or lower `{key}`"
    )


def _power(config: AgentConfig, labelled: pd.DataFrame, window: Window) -> str:
    """Which margin the gate could prove on a test window of such rows."""
    promotion, days = config.promotion, _days(config.windows.test)
    rows = max(1, round(_a_day(labelled, window) * days))
    clusters = rows
    if promotion.cluster:
        share = len(np.unique(cluster_ids(labelled["observed_at"], promotion.cluster, window.start))) / len(labelled)
        clusters = max(1, round(share * rows))
    rarer = None
    if len(config.actions) == 2:
        rarer = round(
            rows * float(labelled["outcome"].value_counts(normalize=True).reindex([0, 1], fill_value=0).min())
        )
    least = provable_margin(rows, clusters, promotion.confidence, rarer=rarer)
    told = f"promotion: {describe_power(rows, clusters, promotion.confidence, rarer=rarer)}"
    margin = promotion.non_inferiority_margin
    if margin >= least:
        return told
    told += f", and `promotion.non_inferiority_margin` is {margin:g}: a challenger that is no better would be refused"
    needed = rows_needed(margin, promotion.confidence)
    if needed is None:
        return told
    weeks = math.ceil(days / 7 * needed / max(1, min(rows, clusters) if rarer is None else rarer))
    return f"{told}. Lengthen `windows.test` to about {weeks:,}w, or raise the margin"


def _a_day(rows: pd.DataFrame, window: Window) -> float:
    return len(rows) / max(_days(window.end - window.start), 1e-9)


def _days(length: timedelta) -> float:
    return length / timedelta(days=1)


# --------------------------------------------------------------------------- budgets and sources


def _refuse_open_purse(config: AgentConfig) -> None:
    """:raises ConfigError: if a teacher that costs money could answer any number of the agent's questions."""
    cascade = config.runtime.cascade
    if cascade is None or cascade.cost_per_day is not None or cascade.calls_per_day is not None:
        return
    priced = [leaf.name for leaf in leaves(config.teachers) if leaf.teacher.costs_money]
    if priced:
        raise ConfigError(
            f"{config.file}: runtime.cascade: teacher {priced[0]!r} costs money, and neither "
            "`calls_per_day` nor `cost_per_day` limits how often an unsure student sends for it: set one of them"
        )


def _cascade(config: AgentConfig, cascade: Cascade, seconds: float, unsure: float) -> str:
    """What the cascade would do with the rows that were tried.

    :raises ConfigError: if the teacher takes longer for a row than it is given.
    """
    limit = cascade.timeout.total_seconds()
    if seconds > limit:
        raise ConfigError(
            f"{config.file}: runtime.cascade.timeout: the teachers took {seconds:.2g} s to answer, and "
            f"have {limit:g} s: the student's answers would stand. Give them longer, or leave the cascade out"
        )
    return (
        f"cascade: the teacher answers in {1000 * seconds:.0f} ms; this student, trained on one tiny pass, would send "
        f"for it in {unsure:.0%} of the rows"
    )


def _observations(config: AgentConfig) -> pd.DataFrame:
    where = f"{config.file}: observations.source"
    found = _call(resolve(config.observations.source, where=where), config, where)
    tidied = tidy(found, config).sort_values("observed_at", kind="stable", ignore_index=True)
    if len(tidied) < 100:
        raise WindowError(
            f"{where} gives {len(tidied)} rows in the two weeks from {config.observations.since:%Y-%m-%d}, and 100 are "
            f"needed: let `observations.since` name a time from which there are rows"
        )
    if tidied["observation_id"].duplicated().any():
        raise PartError(f"{where} gives the same observation_id more than once")
    return tidied.assign(content_key=content_keys(tidied, config))


def _labelled(config: AgentConfig, observed: pd.DataFrame) -> pd.DataFrame:
    where = f"{config.file}: outcomes.source"
    outcomes = _call(resolve(config.outcomes.source, where=where), config, where)
    lacking = {"observation_id", "observed_at", "known_at", "action"} - set(outcomes.columns)
    if lacking:
        raise PartError(f"{where} lacks the columns {sorted(lacking)}")
    outcomes = tidy_outcomes(outcomes, config)
    if strange := sorted(set(outcomes["action"]) - set(config.actions)):
        raise PartError(f"{where} gives actions {strange}, which `actions` {list(config.actions)} does not have")
    index = {action: i for i, action in enumerate(config.actions)}
    labelled = observed.merge(outcomes[["observation_id", "action"]], on="observation_id")
    labelled["outcome"] = labelled["action"].map(index).astype(np.int64)
    if len(labelled) < len(observed) // 2:
        raise PartError(f"{where} knows {len(labelled)} of {len(observed)} observations: do the observation_ids agree?")
    return labelled


def _shares(config: AgentConfig, outcomes: pd.Series) -> str:
    """How often each action came out; of many, the most frequent and how many never did."""
    shares = {shown(action): float((outcomes == i).mean()) for i, action in enumerate(config.actions)}
    if len(shares) <= _SHOWN_ACTIONS:
        return ", ".join(f"{action} {share:.0%}" for action, share in shares.items())
    most = sorted(shares, key=lambda action: -shares[action])[:3]
    named = ", ".join(f"{action} {shares[action]:.1%}" for action in most)
    return f"most often {named}; {sum(share > 0 for share in shares.values())} of {len(shares)} actions"


def _call(source: Any, config: AgentConfig, where: str) -> pd.DataFrame:
    start = config.observations.since
    try:
        found = source(start, start + _LOOKED_AT)
    except StillhouseError:
        raise
    except Exception as error:
        raise PartError(f"{where} fails on two weeks from {start:%Y-%m-%d}: {type(error).__name__}: {error}") from error
    if not isinstance(found, pd.DataFrame):
        raise PartError(f"{where} gives a {type(found).__name__}, not a pandas DataFrame")
    return found
