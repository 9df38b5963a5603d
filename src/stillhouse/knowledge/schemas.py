"""The tables of a knowledge base: their names, columns, types and Delta properties.

Tables that are read by time are partitioned by ``observed_month`` (``2013-01``): a window reads the files of its months
only, and compaction rewrites one month at a time. The column is derived from ``observed_at`` when rows are written;
readers get it only if they ask for it. Tables that were created before the partitioning stay unpartitioned.

Old table versions stay readable: Delta deletes commits after thirty days unless a table's properties forbid it, as
:data:`TABLE_PROPERTIES` does.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
from deltalake import PostCommitHookProperties

__all__ = [
    "COMMIT_HOOKS",
    "FIELDS",
    "MONTH_COLUMN",
    "PARTITIONED_TABLES",
    "TABLE_PROPERTIES",
    "TIME",
    "WINDOWED_TABLES",
    "Table",
]

Table = Literal[
    "observations",
    "decisions",
    "rankings",
    "knowledge",
    "outcomes",
    "quarantine",
    "verdicts",
    "evidence",
    "unanswered",
    "spending",
    "questions",
    "weights",
    "scores",
]

TIME = pa.timestamp("us", tz="UTC")
_PROBABILITIES = pa.list_(pa.float64())
_FEATURES = pa.list_(pa.float32())
FIELDS: dict[Table, list[tuple[str, pa.DataType]]] = {
    "observations": [("observation_id", pa.string()), ("observed_at", TIME), ("content_key", pa.string())],
    "decisions": [
        ("decision_id", pa.string()),
        ("observation_id", pa.string()),
        ("observed_at", TIME),
        ("decided_at", TIME),
        ("action", pa.string()),
        ("probabilities", _PROBABILITIES),
        ("decider", pa.string()),
        ("version", pa.string()),
    ],
    "rankings": [
        ("ranking_id", pa.string()),
        ("observation_id", pa.string()),
        ("observed_at", TIME),
        ("ranked_at", TIME),
        ("action", pa.string()),
        ("probability", pa.float64()),
        ("position", pa.int32()),
        ("version", pa.string()),
    ],
    "knowledge": [
        ("content_key", pa.string()),
        ("observed_at", TIME),
        ("teacher", pa.string()),
        ("asked_at", TIME),
        ("probabilities", _PROBABILITIES),
        ("features", _FEATURES),
    ],
    "outcomes": [
        ("observation_id", pa.string()),
        ("observed_at", TIME),
        ("known_at", TIME),
        ("action", pa.string()),
    ],
    "quarantine": [
        ("observation_id", pa.string()),
        ("observed_at", TIME),
        ("reasons", pa.list_(pa.string())),
    ],
    "verdicts": [
        ("verdict_id", pa.string()),
        ("kind", pa.string()),
        ("observed_at", TIME),
        ("recorded_at", TIME),
        ("outcome", pa.string()),
        ("json", pa.string()),
    ],
    "evidence": [
        ("process", pa.string()),
        ("champion", pa.string()),
        ("since", TIME),
        ("observed_at", TIME),
        ("observation_ids", pa.list_(pa.string())),
        ("units", pa.list_(pa.int64())),
        ("probabilities", _PROBABILITIES),
        ("weights", _PROBABILITIES),
        ("losses", _PROBABILITIES),
        ("json", pa.string()),
    ],
    "unanswered": [
        ("content_key", pa.string()),
        ("observed_at", TIME),
        ("teacher", pa.string()),
        ("asked_at", TIME),
        ("reason", pa.string()),
    ],
    "spending": [
        ("job", pa.string()),
        ("purpose", pa.string()),
        ("teacher", pa.string()),
        ("version", pa.string()),
        ("observed_at", TIME),
        ("asked_at", TIME),
        ("calls", pa.int64()),
        ("rows", pa.int64()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("money", pa.float64()),
    ],
    "weights": [
        ("job", pa.string()),
        ("version", pa.string()),
        ("observed_at", TIME),
        ("recorded_at", TIME),
        ("teacher", pa.string()),
        ("slice", pa.string()),
        ("before", pa.float64()),
        ("after", pa.float64()),
        ("json", pa.string()),
    ],
    "questions": [
        ("job", pa.string()),
        ("teacher", pa.string()),
        ("observation_id", pa.string()),
        ("content_key", pa.string()),
        ("observed_at", TIME),
        ("probability", pa.float64()),
        ("known", pa.bool_()),
    ],
    "scores": [
        ("member", pa.string()),
        ("observed_at", TIME),
        ("end", TIME),
        ("rule", pa.string()),
        ("rows", pa.int64()),
        ("rows_key", pa.string()),
        ("log_loss", pa.float64()),
        ("half_brier", pa.float64()),
        ("accuracy", pa.float64()),
        ("score", pa.float64()),
        ("probabilities", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int8())),
    ],
}

WINDOWED_TABLES: tuple[Table, ...] = ("observations", "outcomes", "quarantine", "decisions")
"""A window records the versions of these tables."""

MONTH_COLUMN = "observed_month"
"""Partition column, derived from ``observed_at`` when rows are written: ``2013-01``."""
PARTITIONED_TABLES: tuple[Table, ...] = (*WINDOWED_TABLES, "rankings", "knowledge")
"""These tables are partitioned by ``observed_month``."""

TABLE_PROPERTIES = {"delta.enableExpiredLogCleanup": "false", "delta.checkpointInterval": "20"}
"""Of every table: commits are never deleted, and opening a table reads at most twenty commits after a checkpoint."""

COMMIT_HOOKS = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)
"""Gives the same to a table that was created before these properties were introduced."""
