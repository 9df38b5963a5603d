"""The knowledge base of one agent: Delta tables that are appended once and read in windows of time.

=============  ====================================================================================
table          a row is
=============  ====================================================================================
observations   an observation: ``observation_id, observed_at, content_key`` and its features
decisions      a decision: action, probabilities, decider and its version
knowledge      a teacher's answer to the content of an observation: a probability per action, features if any
outcomes       the true action of an observation, or its teacher's answer, and when it became known
quarantine     an observation that violates the data contract, with the reasons
verdicts       a verdict of a watch, gate or promotion, as JSON
unanswered     a content to which a teacher gave no usable answer, with the reason
spending       the cost of some questions to a teacher: calls, rows, tokens, seconds, money
questions      a row that a refresh selected to ask a teacher about, with its inclusion probability
evidence       a step of sequential evidence on a champion: the rows counted, their probabilities, its state
weights        a change of a teacher's weight in the ensemble mean, with its reason
scores         the scores of a pool member on the labelled rows of a complete block of time
=============  ====================================================================================

Every append names its batch, and a batch that is in the table is not written again: a run can be repeated after a
crash. ``content_key`` is a hash of the features of an observation. Answers of a teacher are stored under the content
key and the teacher's version, so no teacher is asked twice about the same content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from stillhouse.config import AgentConfig
from stillhouse.errors import SchemaError, WindowError
from stillhouse.knowledge import sampling, time_range
from stillhouse.knowledge.answers import TeacherAnswers
from stillhouse.knowledge.content import content_keys, tidy, tidy_outcomes
from stillhouse.knowledge.journal import Journal
from stillhouse.knowledge.pruning import Clause, files_with, newest_observed_at, observed_in, oldest_observed_at
from stillhouse.knowledge.schemas import MONTH_COLUMN, WINDOWED_TABLES, Table
from stillhouse.knowledge.tables import Tables, wrap_errors
from stillhouse.records import DataReport, Window, short_id

__all__ = ["KnowledgeBase"]

_BATCH_ROWS = 65_536  # of a streamed Arrow batch
_EPOCH = pd.Timestamp(0, tz="UTC")


class KnowledgeBase:
    """Observations and outcomes of one agent, read by windows; its teachers' answers; its journal.

    ``answers`` has what teachers answered and cost, ``journal`` verdicts, evidence and weight changes, and ``tables``
    the Delta tables themselves.

    :param config: the agent, whose contract gives the columns of the observations.
    :param root: folder of the tables; by default ``STILLHOUSE_HOME/knowledge/<agent>``.
    :param actions: of a model that was trained for other actions than the agent file has now: teacher probabilities are
        read and stored for these; an outcome with another action gets an index from ``len(actions)`` on.

    >>> from tempfile import TemporaryDirectory
    >>> config = AgentConfig.model_validate({
    ...     "agent": "toy",
    ...     "actions": ["stay", "move"],
    ...     "observations": {
    ...         "source": "toy:rows",
    ...         "since": "2013-01-01T00:00Z",
    ...         "columns": {"temp": {"type": "number"}},
    ...     },
    ...     "outcomes": {"source": "toy:outcomes", "delay": "1d"},
    ...     "teachers": [{"kind": "python", "name": "t", "target": "toy:Teacher"}],
    ...     "student": {"kind": "tabular"},
    ...     "windows": {"train": "8w", "test": "1w", "current": "7d"},
    ...     "watch": {"thresholds": {"psi": 0.25}},
    ... })
    >>> start = datetime(2013, 1, 1, tzinfo=UTC)
    >>> rows = pd.DataFrame({"observation_id": ["o1"], "observed_at": [start], "temp": [5.0]})
    >>> with TemporaryDirectory() as folder:
    ...     base = KnowledgeBase(config, Path(folder))
    ...     base.append_observations(rows, batch="first"), base.append_observations(rows, batch="first")
    ...     window = base.window("current", start, start + timedelta(days=7))
    ...     base.read_observations(window)["temp"].tolist()
    (1, 0)
    [5.0]
    """

    def __init__(self, config: AgentConfig, root: Path | None = None, *, actions: Sequence[str] | None = None) -> None:
        actions = tuple(config.actions if actions is None else actions)
        self._label_actions = [*actions, *(action for action in config.actions if action not in actions)]
        self.config = config if actions == config.actions else config.model_copy(update={"actions": actions})
        self.tables = Tables(self.config, root)
        self.answers = TeacherAnswers(self.tables)
        self.journal = Journal(self.tables)

    @property
    def root(self) -> Path:
        """Folder of the tables."""
        return self.tables.root

    # ----------------------------------------------------------------- writing

    def append_observations(self, rows: pd.DataFrame, *, batch: str) -> int:
        """Append raw observations with their content keys. See :func:`.content.tidy` and :meth:`.tables.Tables.append`.

        :returns: number of rows written; 0 if the batch is there already.
        :raises SchemaError: if a column is missing or of another type, or an observation is dated before 1700 or after
            now.
        """
        tidied = tidy(rows, self.config)
        if (out_of_range := time_range.is_out_of_range(tidied["observed_at"])).any():
            first = tidied[out_of_range].iloc[0]
            raise SchemaError(
                f"{int(out_of_range.sum())} observations of agent {self.config.agent!r} are dated before 1700 or after "
                f"now, such as {first['observation_id']!r} at {first['observed_at'].isoformat()}: correct their "
                "observed_at"
            )
        rows = tidied.assign(content_key=content_keys(tidied, self.config))
        return self.tables.append("observations", rows, batch=batch)

    def append_outcomes(self, rows: pd.DataFrame, *, batch: str) -> int:
        """Append outcomes, or the teacher's answers where there are none.

        :param rows: ``observation_id, observed_at, known_at, action``.
        :returns: number of rows written; 0 if the batch is there already.
        """
        return self.tables.append("outcomes", tidy_outcomes(rows, self.config), batch=batch)

    def quarantine(self, report: DataReport, bad_rows: pd.DataFrame) -> DataReport:
        """Put the bad rows of a checked window into quarantine, once.

        :param bad_rows: ``observation_id, observed_at, reasons``.
        :returns: the report with a window that leaves these rows out.
        """
        window = report.window
        batch = f"check:{window.start:%Y%m%dT%H%M%S}:{window.end:%Y%m%dT%H%M%S}:{window.versions.get('observations')}"
        self.tables.append("quarantine", bad_rows, batch=batch)
        delta = self.tables.open("quarantine")
        newest = {"quarantine": delta.version()} if delta else {}
        pinned = window.model_copy(update={"versions": window.versions | newest})
        return report.model_copy(update={"window": pinned})

    # ----------------------------------------------------------------- reading tables in windows

    def window(self, name: str, start: datetime, end: datetime) -> Window:
        """The window ``[start, end)`` at the current table versions: it reads the same rows whatever is added later."""
        versions: dict[str, int] = {}
        for table in WINDOWED_TABLES:
            if delta := self.tables.open(table):
                versions[table] = delta.version()
        return Window(name=name, start=start, end=end, versions=versions)

    def read(self, table: Table, window: Window | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Rows of ``table`` in ``window`` (by default all), ordered by time, at the window's table version.

        A table that did not exist when the window was taken is empty in it.
        """
        delta = self._open_at(table, window)
        if delta is None:
            return self.tables.empty_frame(table, columns)
        if table == "observations":
            self.tables.require_column_types(columns, delta)
        dataset, row_filter = observed_in(delta, *((window.start, window.end) if window else ()))
        names = [name for name in dataset.schema.names if name != MONTH_COLUMN] if columns is None else columns
        arrow = self.tables.read_files(table, dataset, list(dict.fromkeys([*names, "observed_at"])), row_filter)
        rows: pd.DataFrame = arrow.to_pandas().sort_values("observed_at", kind="stable", ignore_index=True)
        return rows if columns is None else rows[list(columns)]

    def stream(
        self,
        table: Table,
        window: Window | None = None,
        columns: Sequence[str] | None = None,
        observation_ids: pa.Array | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """The rows of :meth:`read` in Arrow batches, in bounded memory and in no order.

        :param observation_ids: only rows of these observations.
        """
        delta = self._open_at(table, window)
        if delta is None:
            return
        if table == "observations":
            self.tables.require_column_types(columns, delta)
        dataset, row_filter = observed_in(delta, *((window.start, window.end) if window else ()))
        names = [name for name in dataset.schema.names if name != MONTH_COLUMN] if columns is None else list(columns)
        if observation_ids is not None:
            row_filter &= pc.field("observation_id").isin(observation_ids)
        if not dataset.files:
            return
        options = {"batch_size": _BATCH_ROWS, "batch_readahead": 2, "fragment_readahead": 1}
        with wrap_errors(table, self.root):
            yield from self.tables.scan(table, dataset, names, row_filter, **options).to_batches()

    def _open_at(self, table: Table, window: Window | None) -> DeltaTable | None:
        """The table at the window's version; None if it did not exist then."""
        versions = window.versions if window else {}
        did_not_exist = bool(versions) and table in WINDOWED_TABLES and table not in versions
        return None if did_not_exist else self.tables.open(table, versions.get(table))

    # ----------------------------------------------------------------- observations

    def read_observations(self, window: Window) -> pd.DataFrame:
        """Observations of the window that are not in quarantine, one row each, ordered by time and id.

        If the window has a sample, the sampled observations; they do not depend on the order of rows and files.
        """
        if window.sample is None or window.seed is None:
            return self.drop_quarantined(self.read("observations", window), window)
        quarantined = pa.array(self._quarantined_ids(window), pa.string())
        sample = sampling.sample_by_hash(
            self.stream("observations", window), window.sample, window.seed, exclude=quarantined
        )
        rows = sample.to_pandas() if sample.num_columns else self.tables.empty_frame("observations")
        return rows.sort_values(["observed_at", "observation_id"], ignore_index=True)

    def drop_quarantined(self, rows: pd.DataFrame, window: Window) -> pd.DataFrame:
        """The observations that :meth:`read_observations` returns, from the rows that :meth:`read` has returned."""
        rows = rows.sort_values(["observed_at", "observation_id", "content_key"])
        return rows[~rows["observation_id"].isin(self._quarantined_ids(window))].drop_duplicates(
            "observation_id", ignore_index=True
        )

    def _quarantined_ids(self, window: Window) -> pd.Series[Any]:
        return self.read("quarantine", window, ["observation_id"])["observation_id"]

    def has_observations(self, start: datetime, end: datetime) -> bool:
        """Whether there is an observation in ``[start, end)``."""
        delta = self.tables.open("observations")
        if delta is None or end <= start:
            return False
        dataset, row_filter = observed_in(delta, start, end)
        if not dataset.files:
            return False
        return len(self.tables.scan("observations", dataset, ["observed_at"], row_filter).head(1)) > 0

    def sample(self, rows: pd.DataFrame, size: int) -> pd.DataFrame:
        """``size`` of ``rows`` (all if there are fewer), uniformly without replacement; deterministic in ``rows``."""
        if len(rows) <= size:
            return rows
        seed = int(short_id(self.config.agent, len(rows), *rows["observation_id"].iloc[[0, -1]]), 16) % 2**32
        return rows.sample(size, random_state=seed).sort_index()

    def limit(self, rows: pd.DataFrame, max_rows: int | None) -> pd.DataFrame:
        """At most ``max_rows`` of ``rows`` (ordered by time): half are the newest, half are a sample of the older ones.

        So the cost of a refresh does not grow with the age of the agent. Deterministic in ``rows``.
        """
        if max_rows is None or len(rows) <= max_rows:
            return rows
        older, newest = rows.iloc[: -(max_rows // 2)], rows.iloc[-(max_rows // 2) :]
        return pd.concat([self.sample(older, max_rows - max_rows // 2), newest], ignore_index=True)

    # ----------------------------------------------------------------- labels

    def read_labelled(self, window: Window, known_by: datetime) -> pd.DataFrame:
        """Observations of the window with an outcome known by ``known_by``; ``outcome`` is the label ``0…K−1``.

        If an outcome was corrected, the last value known by then.
        """
        rows = self.join_labels(self.read_observations(window), window, known_by)
        return rows[rows["outcome"] >= 0].reset_index(drop=True)

    def join_labels(self, rows: pd.DataFrame, window: Window, known_by: datetime) -> pd.DataFrame:
        """``rows``, observations of the window, with ``outcome``: the label ``0…K−1``, or −1 if not known by then.

        :raises SchemaError: if an outcome has an action that the agent file does not have.
        """
        outcomes = self._read_outcomes(rows, window, ["observation_id", "known_at", "action"])
        return self._join_outcomes(rows, outcomes[outcomes["known_at"] <= known_by])

    def read_labelled_blocks(self, window: Window, block: timedelta, delay: timedelta) -> pd.DataFrame:
        """Observations of the window whose outcome was known by the end of their block of time plus ``delay``.

        As :meth:`read_labelled`, with ``block_start``. Blocks begin at whole multiples of ``block`` since 1970 UTC. So
        whoever reads a block after this moment gets the same rows. Outcomes that were known after the window's end do
        not count, so younger blocks have the rows whose outcome was known at the window's end.
        """
        outcomes = self.read("outcomes", window, ["observation_id", "observed_at", "known_at", "action"])
        known_by = _block_starts(outcomes["observed_at"], block) + (block + delay)
        known = (outcomes["known_at"] <= known_by) & (outcomes["known_at"] <= window.end)
        rows = self._join_outcomes(self.read_observations(window), outcomes[known])
        rows = rows[rows["outcome"] >= 0].reset_index(drop=True)
        return rows.assign(block_start=_block_starts(rows["observed_at"], block))

    def _join_outcomes(self, rows: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
        """``rows`` with ``outcome``, the label by the last known of ``outcomes``, or −1."""
        outcomes = outcomes.sort_values(["known_at", "action"], kind="stable")
        outcomes = outcomes.drop_duplicates("observation_id", keep="last")
        label_index = {action: i for i, action in enumerate(self._label_actions)}
        outcomes = outcomes.assign(outcome=outcomes["action"].map(label_index))
        if outcomes["outcome"].isna().any():
            unknown = sorted(set(outcomes.loc[outcomes["outcome"].isna(), "action"]))
            raise SchemaError(f"outcomes of agent {self.config.agent!r} name unknown actions {unknown}")
        joined = rows.merge(
            outcomes[["observation_id", "outcome"]], on="observation_id", how="left", validate="one_to_one"
        )
        return joined.fillna({"outcome": -1}).astype({"outcome": "int64"})

    def _read_outcomes(self, rows: pd.DataFrame, window: Window, columns: list[str]) -> pd.DataFrame:
        """The outcomes of the window, ordered by time; if it has a sample, only those of ``rows``."""
        if window.sample is None:
            return self.read("outcomes", window, columns)
        ids = pa.array(rows["observation_id"], pa.string())
        frames = [batch.to_pandas() for batch in self.stream("outcomes", window, [*columns, "observed_at"], ids)]
        if not frames:
            return self.tables.empty_frame("outcomes", columns)
        outcomes: pd.DataFrame = pd.concat(frames).sort_values("observed_at", kind="stable", ignore_index=True)
        return outcomes[columns]

    def read_newly_labelled(self, start: datetime, end: datetime, since: datetime) -> pd.DataFrame:
        """Observations of ``since`` and later whose outcome became known in ``[start, end)`` for the first time.

        As :meth:`read_labelled`, with ``known_at``. A later correction does not make an observation new again.
        """
        new = self._first_outcomes(start, end, since)
        times = new["observed_at"]
        last = since if new.empty else times.max() + timedelta(microseconds=1)
        window = Window(name="arrived", start=since if new.empty else times.min(), end=last)
        known_at = new[["observation_id", "known_at"]]
        return self.read_labelled(window, known_by=end).merge(known_at, on="observation_id", how="inner")

    def _first_outcomes(self, start: datetime, end: datetime, since: datetime) -> pd.DataFrame:
        """``observation_id, observed_at, known_at`` of the outcomes for :meth:`read_newly_labelled`."""
        columns = ["observation_id", "observed_at", "known_at"]
        is_recent: Clause = ("observed_at", ">=", since)
        became_known: tuple[Clause, Clause] = ("known_at", ">=", start), ("known_at", "<", end)
        new: pd.DataFrame = self.tables.select("outcomes", columns, is_recent, *became_known).to_pandas()
        new = new.sort_values("known_at", kind="stable")
        delta = self.tables.open("outcomes")
        if delta is None or new.empty:
            return new
        dataset, earlier = files_with(delta, is_recent, ("known_at", "<", start))
        earlier &= pc.field("observation_id").isin(pa.array(new["observation_id"], pa.string()))
        known_before = self.tables.read_files("outcomes", dataset, ["observation_id"], earlier)
        return new[~new["observation_id"].isin(known_before["observation_id"].to_pylist())].drop_duplicates(
            "observation_id"
        )

    def join_known_at(self, rows: pd.DataFrame, known_by: datetime) -> pd.DataFrame:
        """Labelled ``rows`` with ``known_at``, when their label became known; rows without one are left out."""
        if rows.empty:
            return rows.assign(known_at=pd.Series(dtype="datetime64[us, UTC]"))
        last = rows["observed_at"].max() + timedelta(microseconds=1)
        window = Window(name="known", start=rows["observed_at"].min(), end=last)
        outcomes = self.read("outcomes", window, ["observation_id", "known_at"])
        outcomes = outcomes[outcomes["known_at"] <= known_by].sort_values("known_at", kind="stable")
        return rows.merge(outcomes.drop_duplicates("observation_id", keep="last"), on="observation_id", how="inner")

    # ----------------------------------------------------------------- time

    def resolve_time(self, as_of: datetime | None) -> datetime:
        """``as_of`` in UTC; by default now, by the clock that the agent file names.

        The clock ``newest_observation`` suits a history that is replayed: now is then one microsecond after the newest
        observation.

        :raises WindowError: if the clock is ``newest_observation`` and there are no observations.
        """
        if as_of is not None and not isinstance(as_of, datetime):
            raise WindowError(f"as_of: {as_of!r} is a {type(as_of).__name__}, and must be a datetime")
        if as_of is not None:
            return as_of.replace(tzinfo=UTC) if as_of.tzinfo is None else as_of.astimezone(UTC)
        if self.config.watch.clock == "wall":
            return datetime.now(UTC)
        return self.newest_observed_at() + timedelta(microseconds=1)

    def observed_until(self) -> datetime | None:
        """One microsecond after the newest observation; None if there are no observations."""
        newest = self._newest_observed_at()
        return None if newest is None else newest + timedelta(microseconds=1)

    def observed_since(self, otherwise: datetime) -> datetime:
        """When the agent's history begins: ``observations.since``, or its oldest observation.

        :param otherwise: what is returned if there is neither.
        """
        since = self.config.observations.since
        if since is not None:
            return since
        delta = self.tables.open("observations")
        return (None if delta is None else oldest_observed_at(delta)) or otherwise

    def newest_observed_at(self) -> datetime:
        """``observed_at`` of the newest observation; times in the future do not count.

        :raises WindowError: if there are no observations.
        """
        newest = self._newest_observed_at()
        if newest is None:
            raise WindowError(f"the knowledge base of agent {self.config.agent!r} in {self.root} has no observations")
        return newest

    def _newest_observed_at(self) -> datetime | None:
        delta = self.tables.open("observations")
        return None if delta is None else newest_observed_at(delta, before=time_range.latest_allowed())


def _block_starts(times: pd.Series, block: timedelta) -> pd.Series:
    """The start of the block of each time; blocks begin at whole multiples of ``block`` since 1970 UTC."""
    return _EPOCH + (times - _EPOCH) // block * block
