"""One agent's tables in Delta Lake: append once, read windows by time, at the versions they were first read at.

=============  ====================================================================================
table          a row is
=============  ====================================================================================
observations   what the agent perceived: ``observation_id, observed_at, content_key`` and its features
decisions      what it chose: action, probabilities, who decided, which version
knowledge      what a teacher said about an observation's content: one probability per action, features if any
outcomes       what turned out to be true, and when that became known
quarantine     observations that broke the data contract, with the reasons
verdicts       what the system decided, as JSON
unanswered     a content that a teacher had no usable answer to, with the reason
spending       what some questions to a teacher have cost: calls, rows, tokens, seconds, money
questions      which rows a refresh selected to ask a teacher about, and with what probability
evidence       each step of the evidence on a champion: the rows it counted, with what probability, and its state
weights        a change of a teacher's weight in the mean of several, with its reason
=============  ====================================================================================

Every append names its batch; a batch that is already there is not written again, so any run can be repeated
after a crash. ``content_key`` is a hash of an observation's features: teacher knowledge is kept under it and
under the teacher's version, so nothing is asked twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from stillhouse.config import AgentConfig
from stillhouse.errors import SchemaError, WindowError
from stillhouse.knowledge import moments, sampling
from stillhouse.knowledge.answers import AnswerCaches
from stillhouse.knowledge.content import content_keys, tidy, tidy_outcomes
from stillhouse.knowledge.tables import (
    MONTH,
    WINDOWED,
    Clause,
    Table,
    Tables,
    files_with,
    newest,
    observed_in,
    wrap_errors,
)
from stillhouse.records import (
    DataReport,
    EvidenceRows,
    EvidenceStep,
    Process,
    Spending,
    Verdict,
    WeightChange,
    Window,
    short_id,
)

__all__ = ["KnowledgeBase", "Purpose", "Table", "content_keys", "tidy", "tidy_outcomes"]

Purpose = Literal["refresh", "watch", "runtime"]
Kind = Literal["watch", "gate", "promotion"]

_USELESS_ANSWERS = 2  # to one content: once may be a passing fault
_BATCH_ROWS = 65_536  # that are streamed at once


class KnowledgeBase(Tables):
    """The tables of one agent.

    :param config: the agent, whose contract gives the observations' columns.
    :param root: folder of the tables; by default ``STILLHOUSE_HOME/knowledge/<agent>``.
    :param actions: of a model that was made for other actions than the agent file has now: knowledge is read and kept
        for these; outcomes with an action that they lack get an index from ``len(actions)`` on.
    """

    def __init__(self, config: AgentConfig, root: Path | None = None, *, actions: Sequence[str] | None = None) -> None:
        known = tuple(config.actions if actions is None else actions)
        self.outcomes = [*known, *(action for action in config.actions if action not in known)]
        super().__init__(config if known == config.actions else config.model_copy(update={"actions": known}), root)
        self._answers = AnswerCaches(self)

    # ----------------------------------------------------------------- writing

    def append_observations(self, rows: pd.DataFrame, *, batch: str) -> int:
        """Append raw observations, tidied and keyed by content. See :func:`tidy` and :meth:`append`.

        :raises SchemaError: if one is dated before 1700 or after now.
        """
        tidied = tidy(rows, self.config)
        if (strange := moments.outside(tidied["observed_at"])).any():
            first = tidied[strange].iloc[0]
            raise SchemaError(
                f"{int(strange.sum())} observations of agent {self.config.agent!r} are dated before 1700 or after now, "
                f"such as {first['observation_id']!r} at {first['observed_at'].isoformat()}: correct their observed_at"
            )
        return self.append("observations", tidied.assign(content_key=content_keys(tidied, self.config)), batch=batch)

    def append_knowledge(
        self,
        rows: pd.DataFrame,
        probabilities: np.ndarray[Any, Any],
        *,
        teacher: str,
        features: np.ndarray[Any, Any] | None = None,
    ) -> int:
        """Keep what ``teacher`` (a version) said about observations ``rows``; what it has said before stays.

        :param features: what it makes of them inside, ``[n, D]``.
        :raises SchemaError: if its features were of another width before.
        """
        if features is not None:
            self._require_width(teacher, features.shape[1])
        new = np.isnan(self.knowledge(rows, teacher)[:, 0]) & ~rows.duplicated("content_key").to_numpy()
        if not new.any():
            return 0
        vectors = None if features is None else features[new].astype(np.float32)
        asked_at = datetime.now(UTC)
        answers = rows.loc[new, ["content_key", "observed_at"]].assign(
            teacher=teacher,
            asked_at=asked_at,
            probabilities=list(probabilities[new]),
            features=None if vectors is None else list(vectors),
        )
        batch = f"{teacher}:{pd.util.hash_pandas_object(answers['content_key'], index=False).sum():x}"
        written = self.append("knowledge", answers, batch=batch)
        if written:
            keys = answers["content_key"].tolist()
            self._answers.add(teacher, "probabilities", keys, asked_at, probabilities[new])
            if vectors is not None:
                self._answers.add(teacher, "features", keys, asked_at, vectors)
        return written

    def append_unanswered(self, rows: pd.DataFrame, reasons: Sequence[str], *, teacher: str) -> int:
        """Keep which of ``rows`` ``teacher`` (a version) had no usable answer to, and why.

        The first time it may have been a passing fault; the second time it is the row's, see :meth:`given_up`.
        """
        before = self.unanswered(teacher)["content_key"].value_counts()
        new = rows[["content_key", "observed_at"]].assign(teacher=teacher, asked_at=datetime.now(UTC), reason=reasons)
        new = new[~new["content_key"].isin(before[before >= _USELESS_ANSWERS].index)].drop_duplicates("content_key")
        times = [f"{key}:{before.get(key, 0)}" for key in sorted(new["content_key"])]
        return self.append("unanswered", new, batch=f"{teacher}:{short_id(*times)}")

    def append_questions(
        self,
        rows: pd.DataFrame,
        probability: np.ndarray[Any, Any],
        known: np.ndarray[Any, Any],
        *,
        job: str,
        teacher: str,
    ) -> None:
        """Keep which ``rows`` a job selected to ask ``teacher`` (a version) about; only its first selection is kept.

        :param probability: of each row's being selected, float ``[n]`` in (0, 1]; weighted by its inverse the rows
            speak for all.
        :param known: bool ``[n]``, about which the teacher had spoken before: they cost nothing, and are taken for
            certain. If an audit had drawn them, ``evidence`` has the probability of that.
        """
        kept = rows[["observation_id", "content_key", "observed_at"]]
        kept = kept.assign(job=job, teacher=teacher, probability=probability, known=known)
        self.append("questions", kept, batch=f"questions:{job}:{teacher}")

    def spend(
        self, spent: Spending, *, job: str, purpose: Purpose, teacher: str, version: str, as_of: datetime, batch: str
    ) -> None:
        """Keep what one round of questions to ``teacher`` (its name) has cost; the same batch is counted once.

        :param job: what the questions were asked for, such as a refresh's id.
        :param as_of: the moment of the agent's life that they belong to.
        """
        row = spent.model_dump() | {
            "job": job,
            "purpose": purpose,
            "teacher": teacher,
            "version": version,
            "observed_at": as_of,
            "asked_at": datetime.now(UTC),
        }
        self.append("spending", pd.DataFrame([row]), batch=batch)

    def record(self, verdict: Verdict) -> None:
        """Keep a verdict; one of the same id is never written twice."""
        row = {
            "verdict_id": verdict.verdict_id,
            "kind": verdict.kind,
            "observed_at": verdict.as_of,
            "recorded_at": datetime.now(UTC),
            "outcome": verdict.result,
            "json": verdict.model_dump_json(),
        }
        self.append("verdicts", pd.DataFrame([row]), batch=verdict.verdict_id)

    def append_evidence(self, counted: Sequence[EvidenceRows]) -> None:
        """Keep steps of evidence, all of them at once or none: a step that is there is not written again."""
        latest = {step.process: step.end for step in self.latest_evidence()}
        new = [each for each in counted if each.step.end > latest.get(each.step.process, each.step.since)]
        if not new:
            return
        rows = pd.DataFrame(
            {
                "process": each.step.process,
                "champion": each.step.champion,
                "since": each.step.since,
                "observed_at": each.step.end,
                "observation_ids": list(each.observation_ids),
                "units": list(each.units),
                "probabilities": list(each.probabilities),
                "weights": list(each.weights),
                "losses": list(each.losses),
                "json": each.step.model_dump_json(),
            }
            for each in new
        )
        self.append("evidence", rows, batch=f"evidence:{short_id(*rows['json'])}")

    def append_weights(self, changes: Sequence[WeightChange]) -> None:
        """Keep how teachers' weights changed; what was recorded for a job at a moment is not recorded again."""
        if not changes:
            return
        rows = pd.DataFrame(
            {
                "job": change.job,
                "version": change.version,
                "observed_at": change.as_of,
                "recorded_at": datetime.now(UTC),
                "teacher": change.teacher,
                "slice": change.slice,
                "before": change.before,
                "after": change.after,
                "json": change.model_dump_json(),
            }
            for change in changes
        )
        last = changes[-1]
        self.append("weights", rows, batch=f"weights:{last.version}:{last.job}:{last.as_of.isoformat()}")

    # ----------------------------------------------------------------- reading

    def window(self, name: str, start: datetime, end: datetime) -> Window:
        """The window ``[start, end)`` as of now: it names the table versions, and reads the same rows for ever."""
        versions: dict[str, int] = {}
        for table in WINDOWED:
            if delta := self._open(table):
                versions[table] = delta.version()
        return Window(name=name, start=start, end=end, versions=versions)

    def with_newest_quarantine(self, window: Window) -> Window:
        """The same rows of every other table, without those that were quarantined since the window was taken."""
        delta = self._open("quarantine")
        newest = {"quarantine": delta.version()} if delta else {}
        return window.model_copy(update={"versions": window.versions | newest})

    def set_aside(self, report: DataReport, bad: pd.DataFrame) -> DataReport:
        """Put bad rows of a checked window into quarantine, once; the window of the returned report is without them.

        :param bad: ``observation_id, observed_at, reasons``.
        """
        window = report.window
        batch = f"check:{window.start:%Y%m%dT%H%M%S}:{window.end:%Y%m%dT%H%M%S}:{window.versions.get('observations')}"
        self.append("quarantine", bad, batch=batch)
        return report.model_copy(update={"window": self.with_newest_quarantine(window)})

    def read(self, table: Table, window: Window | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Rows of ``table`` in ``window`` (all without one), ordered by time, at the window's table version.

        A table that was not there when the window was taken stays empty for it.
        """
        delta = self._at(table, window)
        if delta is None:
            return self._empty(table, columns)
        if table == "observations":
            self.require_types(columns, delta)
        dataset, condition = observed_in(delta, *((window.start, window.end) if window else ()))
        names = [name for name in dataset.schema.names if name != MONTH] if columns is None else columns
        found = self._rows(table, dataset, list(dict.fromkeys([*names, "observed_at"])), condition)
        rows: pd.DataFrame = found.to_pandas().sort_values("observed_at", kind="stable", ignore_index=True)
        return rows if columns is None else rows[list(columns)]

    def stream(
        self,
        table: Table,
        window: Window | None = None,
        columns: Sequence[str] | None = None,
        among: pa.Array | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """What :meth:`read` reads, batch by batch in bounded memory, in no order.

        :param among: only rows of these observations.
        """
        delta = self._at(table, window)
        if delta is None:
            return
        if table == "observations":
            self.require_types(columns, delta)
        dataset, condition = observed_in(delta, *((window.start, window.end) if window else ()))
        names = [name for name in dataset.schema.names if name != MONTH] if columns is None else list(columns)
        if among is not None:
            condition &= pc.field("observation_id").isin(among)
        if not dataset.files:
            return
        with wrap_errors(table, self.root):
            yield from self._scan(
                table, dataset, names, condition, batch_size=_BATCH_ROWS, batch_readahead=2, fragment_readahead=1
            ).to_batches()

    def observations(self, window: Window) -> pd.DataFrame:
        """Observations of the window that are not in quarantine, each once, ordered by time and id.

        Of a window with a sample those that it draws, whatever the order of rows and files.
        """
        if window.sample is None or window.seed is None:
            return self.sound(self.read("observations", window), window)
        found = sampling.smallest(
            self.stream("observations", window), window.sample, window.seed, pa.array(self._bad(window), pa.string())
        )
        rows = found.to_pandas() if found.num_columns else self._empty("observations", None)
        return rows.sort_values(["observed_at", "observation_id"], ignore_index=True)

    def sound(self, rows: pd.DataFrame, window: Window) -> pd.DataFrame:
        """Those of ``rows``, all that :meth:`read` gives of the window, that :meth:`observations` would give."""
        rows = rows.sort_values(["observed_at", "observation_id", "content_key"])
        return rows[~rows["observation_id"].isin(self._bad(window))].drop_duplicates(
            "observation_id", ignore_index=True
        )

    def _bad(self, window: Window) -> pd.Series[Any]:
        return self.read("quarantine", window, ["observation_id"])["observation_id"]

    def labelled(self, window: Window, known_by: datetime) -> pd.DataFrame:
        """Observations of the window whose outcome was known by then, with ``outcome`` as action index ``0…K−1``.

        Of an outcome that was corrected, the last that was known by then.
        """
        rows = self.with_labels(self.observations(window), window, known_by)
        return rows[rows["outcome"] >= 0].reset_index(drop=True)

    def unlabelled(self, window: Window, known_by: datetime) -> pd.DataFrame:
        """Observations of the window whose outcome was not known by then, with ``outcome`` −1."""
        rows = self.with_labels(self.observations(window), window, known_by)
        return rows[rows["outcome"] < 0].reset_index(drop=True)

    def with_labels(self, rows: pd.DataFrame, window: Window, known_by: datetime) -> pd.DataFrame:
        """``rows``, observations of the window, with ``outcome`` as action index ``0…K−1``; −1: not known by then.

        :raises SchemaError: if an outcome names an action that the agent file does not have.
        """
        outcomes = self._outcomes_of(rows, window, ["observation_id", "known_at", "action"])
        outcomes = outcomes[outcomes["known_at"] <= known_by].sort_values(["known_at", "action"], kind="stable")
        outcomes = outcomes.drop_duplicates("observation_id", keep="last")
        index = {action: i for i, action in enumerate(self.outcomes)}
        outcomes = outcomes.assign(outcome=outcomes["action"].map(index))
        if outcomes["outcome"].isna().any():
            strange = sorted(set(outcomes.loc[outcomes["outcome"].isna(), "action"]))
            raise SchemaError(f"outcomes of agent {self.config.agent!r} name unknown actions {strange}")
        joined = rows.merge(
            outcomes[["observation_id", "outcome"]], on="observation_id", how="left", validate="one_to_one"
        )
        return joined.fillna({"outcome": -1}).astype({"outcome": "int64"})

    def _outcomes_of(self, rows: pd.DataFrame, window: Window, columns: list[str]) -> pd.DataFrame:
        """The window's outcomes, ordered by time; where it has a sample, only those of its ``rows``."""
        if window.sample is None:
            return self.read("outcomes", window, columns)
        ids = pa.array(rows["observation_id"], pa.string())
        frames = [batch.to_pandas() for batch in self.stream("outcomes", window, [*columns, "observed_at"], ids)]
        if not frames:
            return self._empty("outcomes", columns)
        found: pd.DataFrame = pd.concat(frames).sort_values("observed_at", kind="stable", ignore_index=True)
        return found[columns]

    def arrived(self, start: datetime, end: datetime, since: datetime) -> pd.DataFrame:
        """Observations of ``since`` and later whose outcome became known for the first time in ``[start, end)``.

        As :meth:`labelled`, with ``known_at``. An outcome that is corrected later does not arrive again.
        """
        new = self._first_known(start, end, since)
        times = new["observed_at"]
        last = since if new.empty else times.max() + timedelta(microseconds=1)
        window = Window(name="arrived", start=since if new.empty else times.min(), end=last)
        known = new[["observation_id", "known_at"]]
        return self.labelled(window, known_by=end).merge(known, on="observation_id", how="inner")

    def with_known_at(self, rows: pd.DataFrame, known_by: datetime) -> pd.DataFrame:
        """Labelled ``rows`` with ``known_at``, when the outcome that they bear became known; others are left out."""
        if rows.empty:
            return rows.assign(known_at=pd.Series(dtype="datetime64[us, UTC]"))
        last = rows["observed_at"].max() + timedelta(microseconds=1)
        window = Window(name="known", start=rows["observed_at"].min(), end=last)
        known = self.read("outcomes", window, ["observation_id", "known_at"])
        known = known[known["known_at"] <= known_by].sort_values("known_at", kind="stable")
        return rows.merge(known.drop_duplicates("observation_id", keep="last"), on="observation_id", how="inner")

    def _first_known(self, start: datetime, end: datetime, since: datetime) -> pd.DataFrame:
        """``observation_id, observed_at, known_at`` of the outcomes that :meth:`arrived` is about."""
        columns = ["observation_id", "observed_at", "known_at"]
        lived: Clause = ("observed_at", ">=", since)
        arrived: tuple[Clause, Clause] = ("known_at", ">=", start), ("known_at", "<", end)
        new: pd.DataFrame = self._select("outcomes", columns, lived, *arrived).to_pandas()
        new = new.sort_values("known_at", kind="stable")
        delta = self._open("outcomes")
        if delta is None or new.empty:
            return new
        dataset, earlier = files_with(delta, lived, ("known_at", "<", start))
        earlier &= pc.field("observation_id").isin(pa.array(new["observation_id"], pa.string()))
        old = self._rows("outcomes", dataset, ["observation_id"], earlier)["observation_id"].to_pylist()
        return new[~new["observation_id"].isin(old)].drop_duplicates("observation_id")

    def knowledge(self, rows: pd.DataFrame, teacher: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """What ``teacher`` said about each of ``rows``: float64 ``[n, K]``, NaN where it was never asked.

        What was said about another number of actions is no answer.
        """
        return self._answers.probabilities(rows, teacher, len(self.config.actions))

    def newest_answers(self, teacher: str, most: int) -> list[tuple[str, np.ndarray[Any, np.dtype[np.float64]]]]:
        """Content keys and probabilities ``[K]`` of the ``most`` answers that ``teacher`` gave last, oldest first."""
        delta = self._open("knowledge")
        if delta is None or most < 1:
            return []
        wanted: Clause = ("teacher", "=", teacher)
        dataset, kept = files_with(delta, wanted)
        times = self._rows("knowledge", dataset, ["asked_at"], kept)["asked_at"].cast(pa.int64()).to_numpy()
        since = datetime.fromtimestamp(0, UTC)
        if len(times) > most:
            nth = np.partition(times, len(times) - most)[len(times) - most]
            since += timedelta(microseconds=int(nth))
        columns = ["content_key", "asked_at", "probabilities"]
        found = self._select("knowledge", columns, wanted, ("asked_at", ">=", since), delta=delta).sort_by("asked_at")
        said = zip(found["content_key"].to_pylist(), found["probabilities"].to_pylist(), strict=True)
        return [(key, np.asarray(each)) for key, each in said if len(each) == len(self.config.actions)][-most:]

    def features(self, rows: pd.DataFrame, teacher: str) -> np.ndarray[Any, np.dtype[np.float32]] | None:
        """What ``teacher`` made of each of ``rows`` inside: float32 ``[n, D]``, NaN where it was never asked.

        None where it has given no features at all.
        """
        return self._answers.features(rows, teacher)

    def _require_width(self, teacher: str, width: int) -> None:
        before = self._answers.features_width(teacher)
        if before not in (None, width):
            raise SchemaError(
                f"teacher {teacher} gives features of width {width}, and gave {before} before: they must be of "
                f"one width, or it must be another teacher (another `fingerprint` or settings)"
            )

    def unanswered(self, teacher: str) -> pd.DataFrame:
        """``content_key, reason`` of each time that ``teacher`` (a version) had no usable answer."""
        found: pd.DataFrame = self._select(
            "unanswered", ["content_key", "reason"], ("teacher", "=", teacher)
        ).to_pandas()
        return found

    def given_up(self, teacher: str) -> set[str]:
        """Contents that ``teacher`` (a version) has had no usable answer to twice: it is not asked about them again."""
        times = self.unanswered(teacher)["content_key"].value_counts()
        return set(times[times >= _USELESS_ANSWERS].index)

    def questions(self, job: str, teacher: str) -> pd.DataFrame | None:
        """What :meth:`append_questions` kept of this job; None if it has selected nothing."""
        if not self.has_batch("questions", f"questions:{job}:{teacher}"):
            return None
        found = self._select("questions", None, ("job", "=", job), ("teacher", "=", teacher))
        rows: pd.DataFrame = found.to_pandas()
        return rows.sort_values("observed_at", kind="stable", ignore_index=True)

    def spending(
        self,
        *,
        job: str | None = None,
        purpose: Purpose | None = None,
        after: datetime | None = None,
        until: datetime | None = None,
        asked_since: datetime | None = None,
    ) -> dict[str, Spending]:
        """What was spent on each teacher, by its name.

        :param job: only for this job; ``purpose`` alike.
        :param after: only what belongs to later moments of the agent's life, up to and including ``until``.
        :param asked_since: only what was asked from then on, by the clock on the wall.
        """
        wanted: list[tuple[str, str, Any]] = [
            ("job", "=", job),
            ("purpose", "=", purpose),
            ("observed_at", ">", after),
            ("observed_at", "<=", until),
            ("asked_at", ">=", asked_since),
        ]
        clauses: Any = [clause for clause in wanted if clause[2] is not None]
        figures = list(Spending.model_fields)
        rows = self._select("spending", ["teacher", *figures], *clauses).to_pandas()
        sums = rows.groupby("teacher")[figures].sum()
        return {str(name): Spending.model_validate(total.to_dict()) for name, total in sums.iterrows()}

    def weight_changes(self, version: str | None = None) -> list[WeightChange]:
        """How teachers' weights changed, oldest first; only those of a version of the teachers, where one is named.

        Of a refresh that was interrupted and made again, with more knowledge by then, what it found last.
        """
        clauses = list[Clause]()
        if version is not None:  # at the same moments another version may have replaced it
            times = self._select("weights", ["observed_at"], ("version", "=", version))["observed_at"]
            if not len(times):
                return []
            clauses = [("observed_at", ">=", pc.min(times).as_py()), ("observed_at", "<=", pc.max(times).as_py())]
        columns = ["job", "version", "observed_at", "recorded_at", "teacher", "slice", "json"]
        rows = self._select("weights", columns, *clauses).to_pandas()
        rows = rows.sort_values(["observed_at", "recorded_at"], kind="stable")
        rows = rows.drop_duplicates(["job", "observed_at", "teacher", "slice"], keep="last")
        chosen = rows if version is None else rows[rows["version"] == version]
        return [WeightChange.model_validate_json(text) for text in chosen["json"]]

    def sample(self, rows: pd.DataFrame, size: int) -> pd.DataFrame:
        """``size`` of ``rows`` (all if fewer), uniformly, without replacement; the same rows, the same sample."""
        if len(rows) <= size:
            return rows
        seed = int(short_id(self.config.agent, len(rows), *rows["observation_id"].iloc[[0, -1]]), 16) % 2**32
        return rows.sample(size, random_state=seed).sort_index()

    def thin(self, rows: pd.DataFrame, most: int | None) -> pd.DataFrame:
        """At most ``most`` of ``rows`` (ordered by time): the newest half of them whole, the rest sampled from before.

        So that a refresh costs the same however long the agent has lived; the same rows give the same result.
        """
        if most is None or len(rows) <= most:
            return rows
        older, newest = rows.iloc[: -(most // 2)], rows.iloc[-(most // 2) :]
        return pd.concat([self.sample(older, most - most // 2), newest], ignore_index=True)

    def moment(self, as_of: datetime | None) -> datetime:
        """``as_of`` in UTC; without one, now by the clock that the agent file names.

        The clock ``newest_observation`` suits a history that is replayed; outcomes are then taken as known one
        microsecond after the newest observation.

        :raises WindowError: if that clock is asked and there are no observations.
        """
        if as_of is not None and not isinstance(as_of, datetime):
            raise WindowError(f"as_of: {as_of!r} is a {type(as_of).__name__}, and must be a datetime")
        if as_of is not None:
            return as_of.replace(tzinfo=UTC) if as_of.tzinfo is None else as_of.astimezone(UTC)
        if self.config.watch.clock == "wall":
            return datetime.now(UTC)
        return self.newest_observation() + timedelta(microseconds=1)

    def lived_until(self) -> datetime | None:
        """One microsecond after the newest observation, if there is one."""
        last = self._newest_observation()
        return None if last is None else last + timedelta(microseconds=1)

    def newest_observation(self) -> datetime:
        """When the agent last perceived something; what is dated after now does not count.

        :raises WindowError: if it never has.
        """
        last = self._newest_observation()
        if last is None:
            raise WindowError(f"the knowledge base of agent {self.config.agent!r} in {self.root} has no observations")
        return last

    def _newest_observation(self) -> datetime | None:
        delta = self._open("observations")
        return None if delta is None else newest(delta, moments.latest())

    def verdicts(
        self, kind: Kind | None = None, as_of: datetime | None = None, since: datetime | None = None
    ) -> list[Verdict]:
        """Verdicts in the order of the times they speak of, then as recorded.

        :param kind: only those; None: all.
        :param as_of: only those that speak of exactly that moment.
        :param since: only those that speak of that moment or a later one.
        """
        clauses = list[Clause]()
        if kind is not None:
            clauses.append(("kind", "=", kind))
        if as_of is not None:
            clauses.append(("observed_at", "=", as_of))
        if since is not None:
            clauses.append(("observed_at", ">=", since))
        rows = self._select("verdicts", ["verdict_id", "observed_at", "recorded_at", "json"], *clauses).to_pandas()
        rows = rows.sort_values(["observed_at", "recorded_at"], kind="stable").drop_duplicates("verdict_id")
        return [Verdict.model_validate_json(text) for text in rows["json"]]

    def verdict(self, verdict_id: str) -> Verdict | None:
        """The verdict of that id, if it was recorded."""
        return self._last_verdict(("verdict_id", "=", verdict_id))

    def verdict_at(self, kind: Literal["watch", "gate"], as_of: datetime) -> Verdict | None:
        """The last verdict of that kind that speaks of exactly that moment, if one was recorded."""
        return self._last_verdict(("kind", "=", kind), ("observed_at", "=", as_of))

    def latest_evidence(self) -> list[EvidenceStep]:
        """The last step of each process, of whichever champion was watched last."""
        last = [self._last("evidence", ["json"], ("process", "=", process)) for process in get_args(Process)]
        steps = [EvidenceStep.model_validate_json(row["json"]) for row in last if row is not None]
        return sorted(steps, key=lambda step: step.end)

    def evidence(self, champion: str, since: datetime | None, after: datetime | None = None) -> list[EvidenceRows]:
        """Steps of the evidence on ``champion`` that began at ``since``, oldest first.

        :param since: None: whenever it began.
        :param after: only those that end later.
        """
        clauses: list[Clause] = [("champion", "=", champion)]
        if since is not None:
            clauses.append(("since", "=", since))
        if after is not None:
            clauses.append(("observed_at", ">", after))
        columns = ["observed_at", "json", *(name for name in EvidenceRows.model_fields if name != "step")]
        rows = self._select("evidence", columns, *clauses).sort_by("observed_at").to_pylist()
        return [
            EvidenceRows(
                step=EvidenceStep.model_validate_json(row["json"]),
                **{name: tuple(row[name]) for name in EvidenceRows.model_fields if name != "step"},
            )
            for row in rows
        ]

    def last_refresh(self, before: datetime | None = None) -> datetime | None:
        """The latest moment (before ``before``) at which a refresh was judged, whatever its verdict."""
        last = self._last_judged(before)
        return None if last is None else last["observed_at"]

    def last_refused(self, before: datetime | None = None) -> bool:
        """Whether the refresh that :meth:`last_refresh` speaks of was refused."""
        last = self._last_judged(before)
        return last is not None and last["outcome"] == "refused"

    def _last_judged(self, before: datetime | None) -> dict[str, Any] | None:
        clauses: list[Clause] = [("kind", "=", "gate")]
        if before is not None:
            clauses.append(("observed_at", "<", before))
        return self._last("verdicts", ["recorded_at", "outcome"], *clauses)

    def _last(self, table: Table, columns: Sequence[str], *clauses: Clause) -> dict[str, Any] | None:
        """Of the rows that meet every clause the one of the latest ``observed_at``, then ``recorded_at``."""
        order = [name for name in ("observed_at", "recorded_at") if name == "observed_at" or name in columns]
        for rows in self._newest_first(table, list(dict.fromkeys([*order, *columns])), *clauses):
            if rows.num_rows:
                last: dict[str, Any] = rows.sort_by([(name, "descending") for name in order]).slice(0, 1).to_pylist()[0]
                return last
        return None

    def observed(self, start: datetime, end: datetime) -> bool:
        """Whether there is an observation of ``[start, end)``."""
        delta = self._open("observations")
        if delta is None or end <= start:
            return False
        dataset, condition = observed_in(delta, start, end)
        if not dataset.files:
            return False
        return len(self._scan("observations", dataset, ["observed_at"], condition).head(1)) > 0

    def _last_verdict(self, *clauses: Clause) -> Verdict | None:
        found = self._select("verdicts", ["recorded_at", "json"], *clauses)
        newest = found.sort_by("recorded_at")["json"].to_pylist()
        return Verdict.model_validate_json(newest[-1]) if newest else None

    def _at(self, table: Table, window: Window | None) -> DeltaTable | None:
        """The table as the window was taken: None if it was not there yet."""
        versions = window.versions if window else {}
        absent = bool(versions) and table in WINDOWED and table not in versions
        return None if absent else self._open(table, versions.get(table))
