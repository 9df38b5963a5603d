"""What the teachers have answered since a moment, page by page, for whoever learns from it elsewhere."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.errors import SchemaError
from stillhouse.knowledge.base import KnowledgeBase
from stillhouse.knowledge.tables import files_with, wrap_errors

__all__ = ["MOST_ROWS", "Cursor", "Page", "answers_since"]

MOST_ROWS = 10_000
"""Of a page."""

_TIME = pa.timestamp("us", tz="UTC")
_BEGINNING = datetime.fromtimestamp(0, UTC)
_ORDER = ["asked_at", "content_key", "teacher"]
_COLUMNS = ["content_key", "observed_at", "teacher", "asked_at", "probabilities"]


class Cursor(NamedTuple):
    """The last row of a page: the next page begins behind it."""

    asked_at: int
    """Microseconds since 1970 (UTC)."""
    content_key: str = ""
    teacher: str = ""

    def text(self) -> str:
        """As it stands in an address."""
        return base64.urlsafe_b64encode("\n".join([str(self.asked_at), *self[1:]]).encode()).decode().rstrip("=")

    @classmethod
    def of(cls, text: str) -> Cursor:
        """:raises SchemaError: if it is not what :meth:`text` gave."""
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
    """Rows in the order of ``asked_at``, and where the next page begins; None: there are no more by now."""

    rows: pa.Table
    """``content_key, observed_at, teacher, asked_at, probabilities``: the last a struct with a number per action."""
    next: Cursor | None


def answers_since(base: KnowledgeBase, since: datetime | Cursor, limit: int) -> Page:
    """The first ``limit`` answers of teachers that were given after ``since``.

    Memory is that of a page and of one batch of the table; files that are wholly older are not read. Answers to other
    actions than the agent file has now are left out.
    """
    start = since if isinstance(since, Cursor) else Cursor(round(since.timestamp() * 1e6), "\uffff")
    delta = base.open("knowledge")
    found = _schema().empty_table()
    if delta is not None:
        moment = pa.scalar(start.asked_at, _TIME)
        asked, key, teacher = (pc.field(name) for name in _ORDER)
        behind = (asked > moment) | (
            (asked == moment) & ((key > start.content_key) | ((key == start.content_key) & (teacher > start.teacher)))
        )
        wanted = (asked >= moment) & behind
        dataset, _ = files_with(delta, ("asked_at", ">=", _BEGINNING + timedelta(microseconds=start.asked_at)))
        with wrap_errors("knowledge", base.root):
            for batch in base._scan("knowledge", dataset, _COLUMNS, wanted, batch_size=16_384).to_batches():
                found = _first(pa.concat_tables([found, _fitting(batch, len(base.config.actions))]), limit + 1)
    more = found.num_rows > limit
    found = found.sort_by([(name, "ascending") for name in _ORDER]).slice(0, limit)
    last = found.slice(limit - 1).to_pylist()[0] if more else None
    return Page(
        _by_action(found, base.config.actions),
        Cursor(_micros(last["asked_at"]), last["content_key"], last["teacher"]) if last else None,
    )


def _schema() -> pa.Schema:
    types = {"observed_at": _TIME, "asked_at": _TIME, "probabilities": pa.list_(pa.float64())}
    return pa.schema([(name, types.get(name, pa.string())) for name in _COLUMNS])


def _fitting(batch: pa.RecordBatch, actions: int) -> pa.Table:
    table = pa.Table.from_batches([batch]).cast(_schema())
    return table.filter(pc.equal(pc.list_value_length(table["probabilities"]), actions))


def _first(rows: pa.Table, most: int) -> pa.Table:
    if rows.num_rows <= most:
        return rows
    chosen = pc.select_k_unstable(rows, most, [(name, "ascending") for name in _ORDER])
    return rows.take(chosen)


def _by_action(rows: pa.Table, actions: tuple[str, ...]) -> pa.Table:
    said = rows["probabilities"].combine_chunks()
    numbers = [pc.list_element(said, i) for i in range(len(actions))]
    struct = pa.StructArray.from_arrays([pa.array(each, pa.float64()) for each in numbers], names=list(actions))
    return rows.set_column(len(_COLUMNS) - 1, "probabilities", struct)


def _micros(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)
