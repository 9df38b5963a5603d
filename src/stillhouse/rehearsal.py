"""One tiny pass through every part that an agent file names, before anything real depends on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.compress.search import search
from stillhouse.compress.variants import student_subject, variant_pack
from stillhouse.config import AgentConfig, Cascade, Compression, EndpointTeacher, Fp32, leaves
from stillhouse.distill.students import blocks, columns_of, new_student
from stillhouse.distill.train import Lesson, distil
from stillhouse.errors import ConfigError, PartError, StillhouseError, WindowError
from stillhouse.evaluate.scorecard import quality
from stillhouse.knowledge import content_keys, tidy
from stillhouse.parts import resolve
from stillhouse.records import Limits, Window
from stillhouse.registry.foreign import ForeignModels
from stillhouse.teachers import ensemble
from stillhouse.variant import Variant, encode

__all__ = ["rehearse"]

_SHOWN_ACTIONS = 8
_PAID_ROWS = 3  # an endpoint costs money: its few answers stand in for all, for parts are tried here and not quality


def rehearse(config: AgentConfig, rows: int) -> Iterator[str]:
    """Sources, teachers, student and variant in turn on a few ``rows``; yields what was found to be in order.

    :raises StillhouseError: the first thing that is not, and what to do about it.
    """
    _refuse_open_purse(config)
    observed = _observations(config, rows)
    yield f"{config.observations.source}: {len(observed)} observations with {len(config.observations.columns)} columns"
    labelled = _labelled(config, observed)
    yield f"{config.outcomes.source}: {len(labelled)} outcomes ({_shares(config, labelled['outcome'])})"

    half = labelled["observed_at"].iloc[len(labelled) // 2]
    window = Window(name="check", start=labelled["observed_at"].iloc[0], end=half)
    past, future = labelled[labelled["observed_at"] < half], labelled[labelled["observed_at"] >= half]
    with tempfile.TemporaryDirectory() as folder:
        fitted = ensemble.fit(config, past, window, Path(folder) / "teacher", ForeignModels())
        teachers = ensemble.load(Path(folder) / "teacher", config, ForeignModels())
        asked = future if teachers.local else future.head(_PAID_ROWS)
        began = perf_counter()
        knowledge = np.resize(teachers.ask(asked), (len(future), len(config.actions)))
        seconds = perf_counter() - began
        names = ", ".join(member.name for member in teachers.members)
        yield f"teachers {names}: {len(asked)} rows answered, saved and loaded again ({fitted.bytes:,} bytes)"

        initial = teachers.text_encoder() if config.begins_like_teacher else None
        columns = columns_of(config, future, initial)
        parts, outcomes, features = blocks(columns), future["outcome"].to_numpy(), teachers.features(future)
        lesson = Lesson(encode(future, columns), knowledge, outcomes, parts.numbers, features, tokens=parts.tokens)
        student = new_student(config, columns, lesson.x.numpy(), initial)
        distil(student, lesson, config.distillation, epochs=1)
        subject = student_subject(
            student, columns, config.actions, calibration=lambda columns: encode(future, columns),
            judged=lambda columns: encode(future, columns), quality=lambda said: quality(said, outcomes).score,
        )  # fmt: skip
        plain = Compression(recipes=((Fp32(method="fp32"),),), search=None)
        pack = variant_pack(config.agent, config.actions, {})
        variant = search(lambda: subject, plain, Limits(), pack, Path(folder)).reference
        decided = Variant(variant.folder).predict_proba(future)
        if teachers.local:
            began = perf_counter()
            teachers.ask(asked.head(1))
            seconds = perf_counter() - began
    made = f"learns, becomes ONNX ({variant.bytes:,} bytes) and decides {len(decided)} rows"
    yield f"student ({config.student.kind}): {made}"
    if config.runtime.cascade is not None:
        yield _cascade(
            config, config.runtime.cascade, seconds, float((decided.max(axis=1) < config.runtime.cascade.below).mean())
        )


def _refuse_open_purse(config: AgentConfig) -> None:
    """:raises ConfigError: if a teacher that costs money could answer any number of the agent's questions."""
    cascade = config.runtime.cascade
    if cascade is None or cascade.cost_per_day is not None or cascade.calls_per_day is not None:
        return
    priced = [
        leaf.name for leaf in leaves(config.teachers)
        if isinstance(leaf.teacher, EndpointTeacher)
        and leaf.teacher.price_per_million_input + leaf.teacher.price_per_million_output
    ]  # fmt: skip
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


def _observations(config: AgentConfig, rows: int) -> pd.DataFrame:
    where = f"{config.file}: observations.source"
    found = _call(resolve(config.observations.source, where=where), config, where)
    tidied = tidy(found, config).sort_values("observed_at", kind="stable", ignore_index=True).head(rows)
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
    shares = {action: float((outcomes == i).mean()) for i, action in enumerate(config.actions)}
    if len(shares) <= _SHOWN_ACTIONS:
        return ", ".join(f"{action} {share:.0%}" for action, share in shares.items())
    most = sorted(shares, key=lambda action: -shares[action])[:3]
    named = ", ".join(f"{action} {shares[action]:.1%}" for action in most)
    return f"most often {named}; {sum(share > 0 for share in shares.values())} of {len(shares)} actions"


def _call(source: Any, config: AgentConfig, where: str) -> pd.DataFrame:
    start = config.observations.since
    try:
        found = source(start, start + timedelta(weeks=2))
    except StillhouseError:
        raise
    except Exception as error:
        raise PartError(f"{where} fails on two weeks from {start:%Y-%m-%d}: {type(error).__name__}: {error}") from error
    if not isinstance(found, pd.DataFrame):
        raise PartError(f"{where} gives a {type(found).__name__}, not a pandas DataFrame")
    return found
