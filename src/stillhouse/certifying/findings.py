"""What a verification has found so far, and the comparison of recorded with recomputed values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Set
from contextlib import contextmanager

from pydantic import JsonValue

from stillhouse.errors import SignatureError, StillhouseError
from stillhouse.records import ModelSource, Record, Verdict, WindowSource

__all__ = ["TOLERANCE", "Findings", "list_differences"]

TOLERANCE = 1e-6
"""Relative difference up to which two figures are the same: another processor rounds float32 arithmetic differently."""

_MAX_DIFFERENCES = 20  # of one comparison
_MAX_CHARS = 200  # of one value in a sentence


class Findings:
    """What was computed again, what differs, and what could not be computed."""

    def __init__(self) -> None:
        self.checked: list[str] = []
        self.not_recomputed: list[str] = []
        self.missing: list[str] = []
        self.differences: list[str] = []

    def compare(self, what: str, recorded: JsonValue, recomputed: JsonValue, ignored: Set[str] = frozenset()) -> None:
        """Compare two JSON values, and note that ``what`` was computed again.

        :param ignored: keys that are left out, at any depth.
        """
        self.checked.append(what)
        found = list(list_differences(recorded, recomputed, ignored=ignored))
        self.differences += [f"{what}: {text}" for text in found[:_MAX_DIFFERENCES]]
        if len(found) > _MAX_DIFFERENCES:
            self.differences.append(f"{what}: {len(found) - _MAX_DIFFERENCES} more figures differ")

    def compare_verdicts(self, what: str, recorded: Verdict, judged: Verdict, ignored: Set[str] = frozenset()) -> None:
        """Compare what two verdicts say, without the evidence that they carry."""
        fields = {"verdict_id", "result", "response", "summary", "reasons", "labels_needed"}
        self.compare(what, _dump(recorded, fields), _dump(judged, fields), ignored)

    def compare_window(self, recorded: WindowSource, now: WindowSource) -> bool:
        """Compare the rows of a window; returns whether they are the same."""
        name = f"rows of the window {recorded.window.name!r}"
        self.checked.append(f"{name}: {recorded.rows:,}, with their labels")
        if now.rows != recorded.rows:
            self.differences.append(f"{name}: {recorded.rows:,} are recorded, and there are {now.rows:,}")
        elif now.observations != recorded.observations:
            self.differences.append(f"{name}: their ids or contents are not the recorded ones (checksum differs)")
        elif now.labels != recorded.labels:
            self.differences.append(f"{name}: their outcomes are not the recorded ones (checksum differs)")
        return (now.rows, now.observations, now.labels) == (recorded.rows, recorded.observations, recorded.labels)

    def compare_model(self, recorded: ModelSource, now: ModelSource) -> None:
        """Compare the files of a model."""
        self.checked.append(f"files of {recorded.name} ({recorded.role.replace('_', ' ')})")
        if now.files != recorded.files:
            self.differences.append(
                f"{recorded.name} ({recorded.role.replace('_', ' ')}): its files are not those that were judged "
                f"(checksum {now.files[:12]}…, recorded {recorded.files[:12]}…)"
            )

    @contextmanager
    def noting_missing(self, what: str, advice: str) -> Iterator[None]:
        """Note an error as something that is missing; altered files are a difference.

        :param advice: what to do.
        """
        try:
            yield
        except SignatureError as error:
            self.differences.append(f"{what}: {error}")
        except StillhouseError as error:
            self.missing.append(f"{what}: {error}. {advice}")


def list_differences(
    recorded: JsonValue, recomputed: JsonValue, path: str = "", ignored: Set[str] = frozenset()
) -> Iterator[str]:
    """Sentences about the values that differ, each with its path.

    >>> list(list_differences({"auc": 0.75, "rows": [1, 2]}, {"auc": 0.7500000001, "rows": [1, 3]}))
    ['rows[1]: 2 is recorded, 3 was computed']
    """
    if isinstance(recorded, dict) and isinstance(recomputed, dict):
        for key in dict.fromkeys([*recorded, *recomputed]):
            if key not in ignored:
                inner = f"{path}.{key}" if path else key
                yield from list_differences(recorded.get(key), recomputed.get(key), inner, ignored)
    elif isinstance(recorded, list) and isinstance(recomputed, list) and len(recorded) == len(recomputed):
        for index, (before, now) in enumerate(zip(recorded, recomputed, strict=True)):
            yield from list_differences(before, now, f"{path}[{index}]", ignored)
    elif not _is_same(recorded, recomputed):
        yield f"{path}: {_show(recorded)} is recorded, {_show(recomputed)} was computed".removeprefix(": ")


def _is_same(recorded: JsonValue, recomputed: JsonValue) -> bool:
    if isinstance(recorded, int | float) and isinstance(recomputed, int | float):
        return math.isclose(recorded, recomputed, rel_tol=TOLERANCE, abs_tol=1e-9)
    return recorded == recomputed


def _show(value: JsonValue) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}…"


def _dump(record: Record, fields: set[str]) -> JsonValue:
    dumped: JsonValue = record.model_dump(mode="json", include=fields)
    return dumped
