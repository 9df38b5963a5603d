"""Describe what the figures of a verdict are computed from, by checksums, so that they can be recomputed later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from pydantic import JsonValue, TypeAdapter

from stillhouse.config import AgentConfig
from stillhouse.records import AnswersSource, ModelSource, Window, WindowSource
from stillhouse.verifying import digests

__all__ = [
    "Role",
    "describe_answers",
    "describe_model",
    "describe_settings",
    "describe_window",
    "restore_settings",
]

Array = np.ndarray[Any, Any]
Role = Literal["challenger", "champion", "anchor", "never_refreshed", "earlier"]


def describe_window(window: Window, rows: pd.DataFrame) -> WindowSource:
    """The checksums of rows that were read in ``window``.

    :param rows: ``observation_id, content_key, outcome`` (action index, −1: unknown), in the order in which they are
        used.

    >>> from datetime import UTC
    >>> window = Window(name="test", start=datetime(2026, 1, 1, tzinfo=UTC), end=datetime(2026, 1, 5, tzinfo=UTC))
    >>> rows = pd.DataFrame({"observation_id": ["o1"], "content_key": ["c1"], "outcome": [1]})
    >>> same, other = describe_window(window, rows), describe_window(window, rows.assign(outcome=0))
    >>> same.rows, same.observations == other.observations, same.labels == other.labels
    (1, True, False)
    """
    ids = rows["observation_id"].tolist()
    return WindowSource(
        window=window,
        rows=len(rows),
        observations=_digest(zip(ids, rows["content_key"].tolist(), strict=True)),
        labels=_digest(zip(ids, rows["outcome"].tolist(), strict=True)),
    )


def describe_model(role: Role, name: str, folder: str | Path) -> ModelSource:
    """The checksum of all files of a variant.

    :param folder: of the variant.
    """
    return ModelSource(role=role, name=name, files=_digest(digests(folder).items()))


def describe_answers(teacher: str, window: str, rows: pd.DataFrame, probs: Array) -> AnswersSource:
    """The checksum of a teacher's stored answers.

    :param teacher: its version.
    :param window: name of the window of ``rows``.
    :param probs: float ``[n, K]``, NaN where there is no answer.
    """
    answered = ~np.isnan(probs[:, 0])
    keys = rows["content_key"][answered].tolist()
    answers = _digest((key, *row) for key, row in zip(keys, probs[answered].tolist(), strict=True))
    return AnswersSource(teacher=teacher, window=window, rows=int(answered.sum()), answers=answers)


def describe_settings(config: AgentConfig, sections: Sequence[str]) -> dict[str, JsonValue]:
    """The named sections of an agent file as JSON, without keys that have their default."""
    values = config.model_dump(include=set(sections), exclude_defaults=True)
    return cast(dict[str, JsonValue], json.loads(json.dumps(values, default=_encode)))


def restore_settings(config: AgentConfig, stored: dict[str, JsonValue], sections: Sequence[str]) -> AgentConfig:
    """``config`` with the sections that :func:`describe_settings` has stored.

    A section that had only defaults was not stored, and is restored with its defaults.

    :raises pydantic.ValidationError: if this version of stillhouse does not know a stored key.
    """
    fields = AgentConfig.model_fields
    restored: dict[str, Any] = {
        name: TypeAdapter(cast(Any, fields[name].annotation)).validate_python(
            stored.get(name, None if fields[name].default is None else {})
        )
        for name in sections
        if name != "actions"
    }
    if "actions" in sections and "actions" in fields and "actions" in stored:
        restored["actions"] = tuple(cast(list[str], stored["actions"]))
    return config.model_copy(update=restored)


# --------------------------------------------------------------------------- inside


def _digest(parts: Iterable[tuple[object, ...]]) -> str:
    """SHA-256 of tuples, each on a line, as hexadecimal text."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update("\x1f".join(map(str, part)).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _encode(value: object) -> str:
    """Durations as the agent file has them, and times in ISO 8601."""
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.6f}s"
    return cast(datetime, value).isoformat()
