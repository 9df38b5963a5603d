"""Teacher answers since a time, page by page, for a client that learns from them on another machine.

>>> Cursor.parse(Cursor(1_000_000, "key", "teacher").encode())
Cursor(asked_at=1000000, content_key='key', teacher='teacher')
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.errors import SchemaError
from stillhouse.knowledge.base import KnowledgeBase
from stillhouse.knowledge.pruning import files_with
from stillhouse.knowledge.schemas import TIME
from stillhouse.knowledge.tables import wrap_errors

__all__ = ["MAX_PAGE_ROWS", "Cursor", "Page", "answers_since"]

MAX_PAGE_ROWS = 10_000

_EPOCH = datetime.fromtimestamp(0, UTC)
_SORT_COLUMNS = ["asked_at", "content_key", "teacher"]
_COLUMNS = ["content_key", "observed_at", "teacher", "asked_at", "probabilities"]


class Cursor(NamedTuple):
    """The last row of a page: the next page begins after it."""

    asked_at: int
    """Microseconds since 1970 (UTC)."""
    content_key: str = ""
    teacher: str = ""

    def encode(self) -> str:
        """The cursor as text for a URL."""
        return base64.urlsafe_b64encode("\n".join([str(self.asked_at), *self[1:]]).encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The cursor that :meth:`encode` gave.

        :raises SchemaError: if the text is not a cursor.
        """
        try:
            padded = text.encode("ascii") + b"=" * (-len(text) % 4)
            asked_at, content_key, teacher = (
                base64.b64decode(padded, altchars=b"-_", validate=True).decode().split("\n")
            )
            datetime.fromtimestamp(int(asked_at) / 1e6, UTC)
            return cls(int(asked_at), content_key, teacher)
        except (binascii.Error, ValueError, OverflowError, OSError) as error:
            raise SchemaError(f"the cursor {text[:100]!r} is none that was given out") from error


class Page(NamedTuple):
    """Rows in the order of ``asked_at``, and where the next page begins; None if there are no more rows now."""

    rows: pa.Table
    """``content_key, observed_at, teacher, asked_at, probabilities``: the last a struct with a number per action."""
    next: Cursor | None


def answers_since(base: KnowledgeBase, since: datetime | Cursor, limit: int) -> Page:
    """The first ``limit`` answers that teachers gave after ``since``.

    Memory holds a page and one batch of the table; files with older answers only are not read. Answers with other
    actions than the agent file has now are left out.
    """
    start = since if isinstance(since, Cursor) else Cursor(round(since.timestamp() * 1e6), "\uffff")
    delta = base.tables.open("knowledge")
    answers = _schema().empty_table()
    if delta is not None:
        time = pa.scalar(start.asked_at, TIME)
        asked_at, key, teacher = (pc.field(name) for name in _SORT_COLUMNS)
        is_after = (asked_at > time) | (
            (asked_at == time) & ((key > start.content_key) | ((key == start.content_key) & (teacher > start.teacher)))
        )
        row_filter = (asked_at >= time) & is_after
        dataset, _ = files_with(delta, ("asked_at", ">=", _EPOCH + timedelta(microseconds=start.asked_at)))
        with wrap_errors("knowledge", base.root):
            scanner = base.tables.scan("knowledge", dataset, _COLUMNS, row_filter, batch_size=16_384)
            for batch in scanner.to_batches():
                matching = _matching_actions(batch, len(base.config.actions))
                answers = _first_rows(pa.concat_tables([answers, matching]), limit + 1)
    has_more = answers.num_rows > limit
    answers = answers.sort_by([(name, "ascending") for name in _SORT_COLUMNS]).slice(0, limit)
    last = answers.slice(limit - 1).to_pylist()[0] if has_more else None
    return Page(
        _probs_by_action(answers, base.config.actions),
        Cursor(_microseconds(last["asked_at"]), last["content_key"], last["teacher"]) if last else None,
    )


def _schema() -> pa.Schema:
    types = {"observed_at": TIME, "asked_at": TIME, "probabilities": pa.list_(pa.float64())}
    return pa.schema([(name, types.get(name, pa.string())) for name in _COLUMNS])


def _matching_actions(batch: pa.RecordBatch, actions: int) -> pa.Table:
    """The answers with that number of actions."""
    table = pa.Table.from_batches([batch]).cast(_schema())
    return table.filter(pc.equal(pc.list_value_length(table["probabilities"]), actions))


def _first_rows(rows: pa.Table, count: int) -> pa.Table:
    if rows.num_rows <= count:
        return rows
    return rows.take(pc.select_k_unstable(rows, count, [(name, "ascending") for name in _SORT_COLUMNS]))


def _probs_by_action(rows: pa.Table, actions: tuple[str, ...]) -> pa.Table:
    """``rows`` with the list ``probabilities`` as a struct by action."""
    probs = rows["probabilities"].combine_chunks()
    columns = [pa.array(pc.list_element(probs, i), pa.float64()) for i in range(len(actions))]
    struct = pa.StructArray.from_arrays(columns, names=list(actions))
    return rows.set_column(len(_COLUMNS) - 1, "probabilities", struct)


def _microseconds(time: datetime) -> int:
    return round(time.timestamp() * 1e6)
