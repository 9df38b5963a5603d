"""What teachers answered: probabilities and features by content, rows without an answer, selected questions, costs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.errors import SchemaError
from stillhouse.knowledge.answer_cache import AnswerCaches
from stillhouse.knowledge.pruning import Clause, files_with
from stillhouse.knowledge.tables import Tables
from stillhouse.records import Spending, short_id

__all__ = ["Purpose", "TeacherAnswers"]

Purpose = Literal["refresh", "watch", "runtime", "evaluate"]

Probs = np.ndarray[Any, np.dtype[np.float64]]
Features = np.ndarray[Any, np.dtype[np.float32]]

_MAX_FAILED_ANSWERS = 2  # per content: the first failure may be temporary


class TeacherAnswers:
    """The tables ``knowledge``, ``unanswered``, ``questions`` and ``spending`` of one agent.

    A teacher is named by its version everywhere but in ``spending``. Answers are stored under the content key of an
    observation, so a teacher is never asked twice about the same content.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._caches = AnswerCaches(tables)

    # ----------------------------------------------------------------- probabilities and features

    def probs(self, rows: pd.DataFrame, teacher: str) -> Probs:
        """The teacher's probabilities for each of ``rows``: float64 ``[n, K]``; NaN where it was never asked.

        An answer with another number of actions does not count.
        """
        return self._caches.probs(rows, teacher, len(self._tables.config.actions))

    def has_any(self, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of ``rows`` some teacher has answered, in whichever version, bool ``[n]``."""
        keys = pc.unique(self._tables.select("knowledge", ["content_key"])["content_key"])
        answered: np.ndarray[Any, np.dtype[np.bool_]] = rows["content_key"].isin(keys.to_pylist()).to_numpy()
        return answered

    def features(self, rows: pd.DataFrame, teacher: str) -> Features | None:
        """The teacher's feature vectors for ``rows``: float32 ``[n, D]``; NaN where it was never asked.

        None if the teacher has no features at all.
        """
        return self._caches.features(rows, teacher)

    def newest(self, teacher: str, max_rows: int) -> list[tuple[str, Probs]]:
        """Content keys and probabilities ``[K]`` of the teacher's last ``max_rows`` answers, oldest first."""
        delta = self._tables.open("knowledge")
        if delta is None or max_rows < 1:
            return []
        by_teacher: Clause = ("teacher", "=", teacher)
        dataset, row_filter = files_with(delta, by_teacher)
        asked_at = self._tables.read_files("knowledge", dataset, ["asked_at"], row_filter)["asked_at"]
        times = asked_at.cast(pa.int64()).to_numpy()
        since = datetime.fromtimestamp(0, UTC)
        if len(times) > max_rows:
            nth = np.partition(times, len(times) - max_rows)[len(times) - max_rows]
            since += timedelta(microseconds=int(nth))
        columns = ["content_key", "asked_at", "probabilities"]
        answers = self._tables.select("knowledge", columns, by_teacher, ("asked_at", ">=", since), delta=delta)
        answers = answers.sort_by("asked_at")
        pairs = zip(answers["content_key"].to_pylist(), answers["probabilities"].to_pylist(), strict=True)
        actions = len(self._tables.config.actions)
        return [(key, np.asarray(probs)) for key, probs in pairs if len(probs) == actions][-max_rows:]

    def newest_teacher(self, prefix: str) -> str | None:
        """The version that starts with ``prefix`` and has the answer to the newest observation; None: there is none."""
        for found in self._tables.select_newest_first("knowledge", ["observed_at", "teacher"]):
            of_prefix = found.filter(pc.starts_with(found["teacher"], prefix))
            if of_prefix.num_rows:
                return str(of_prefix.sort_by([("observed_at", "descending")])["teacher"][0].as_py())
        return None

    def append(
        self,
        rows: pd.DataFrame,
        probs: np.ndarray[Any, Any],
        *,
        teacher: str,
        features: np.ndarray[Any, Any] | None = None,
    ) -> int:
        """Store the teacher's answers to ``rows``; a content that it has answered before keeps its first answer.

        :param probs: ``[n, K]``.
        :param features: the teacher's feature vectors, ``[n, D]``.
        :returns: number of answers that were new.
        :raises SchemaError: if earlier features of this teacher have another width.
        """
        if features is not None:
            self._require_feature_width(teacher, features.shape[1])
        is_new = np.isnan(self.probs(rows, teacher)[:, 0]) & ~rows.duplicated("content_key").to_numpy()
        if not is_new.any():
            return 0
        vectors = None if features is None else features[is_new].astype(np.float32)
        asked_at = datetime.now(UTC)
        answers = rows.loc[is_new, ["content_key", "observed_at"]].assign(
            teacher=teacher,
            asked_at=asked_at,
            probabilities=list(probs[is_new]),
            features=None if vectors is None else list(vectors),
        )
        batch = f"{teacher}:{pd.util.hash_pandas_object(answers['content_key'], index=False).sum():x}"
        written = self._tables.append("knowledge", answers, batch=batch)
        if written:
            keys = answers["content_key"].tolist()
            self._caches.add(teacher, "probabilities", keys, asked_at, probs[is_new])
            if vectors is not None:
                self._caches.add(teacher, "features", keys, asked_at, vectors)
        return written

    def _require_feature_width(self, teacher: str, width: int) -> None:
        stored = self._caches.feature_width(teacher)
        if stored not in (None, width):
            raise SchemaError(
                f"teacher {teacher} gives features of width {width}, and gave {stored} before: they must be of "
                f"one width, or it must be another teacher (another `fingerprint` or settings)"
            )

    # ----------------------------------------------------------------- rows without an answer

    def append_unanswered(self, rows: pd.DataFrame, reasons: Sequence[str], *, teacher: str) -> int:
        """Store which ``rows`` the teacher gave no usable answer to, and why.

        The first failure may be temporary; after the second the content is not asked again, see
        :meth:`unanswerable_keys`.
        """
        failures = self.unanswered(teacher)["content_key"].value_counts()
        new = rows[["content_key", "observed_at"]].assign(teacher=teacher, asked_at=datetime.now(UTC), reason=reasons)
        given_up = failures[failures >= _MAX_FAILED_ANSWERS].index
        new = new[~new["content_key"].isin(given_up)].drop_duplicates("content_key")
        counted = [f"{key}:{failures.get(key, 0)}" for key in sorted(new["content_key"])]
        return self._tables.append("unanswered", new, batch=f"{teacher}:{short_id(*counted)}")

    def unanswered(self, teacher: str) -> pd.DataFrame:
        """``content_key, reason`` of every question to which the teacher gave no usable answer."""
        rows: pd.DataFrame = self._tables.select(
            "unanswered", ["content_key", "reason"], ("teacher", "=", teacher)
        ).to_pandas()
        return rows

    def unanswerable_keys(self, teacher: str) -> set[str]:
        """Content keys to which the teacher gave no usable answer twice: it is not asked about them again."""
        failures = self.unanswered(teacher)["content_key"].value_counts()
        return set(failures[failures >= _MAX_FAILED_ANSWERS].index)

    # ----------------------------------------------------------------- selected questions

    def append_questions(
        self,
        rows: pd.DataFrame,
        probability: np.ndarray[Any, Any],
        has_teacher_probs: np.ndarray[Any, Any],
        *,
        job: str,
        teacher: str,
    ) -> None:
        """Store which ``rows`` a job selected to ask the teacher about; a second selection of the job is ignored.

        :param probability: inclusion probability of each row, float ``[n]`` in (0, 1]: the inverse is its weight in
            estimates for all rows.
        :param has_teacher_probs: rows that the teacher had answered before, bool ``[n]``: they are free, and included
            with certainty. If an audit had drawn them, ``evidence`` has the probability of that.
        """
        questions = rows[["observation_id", "content_key", "observed_at"]]
        questions = questions.assign(job=job, teacher=teacher, probability=probability, known=has_teacher_probs)
        self._tables.append("questions", questions, batch=f"questions:{job}:{teacher}")

    def questions(self, job: str, teacher: str) -> pd.DataFrame | None:
        """The selection that :meth:`append_questions` stored for this job; None if there is none."""
        if not self._tables.has_batch("questions", f"questions:{job}:{teacher}"):
            return None
        questions = self._tables.select("questions", None, ("job", "=", job), ("teacher", "=", teacher))
        rows: pd.DataFrame = questions.to_pandas()
        return rows.sort_values("observed_at", kind="stable", ignore_index=True)

    # ----------------------------------------------------------------- costs

    def append_spending(
        self, spent: Spending, *, job: str, purpose: Purpose, teacher: str, version: str, as_of: datetime, batch: str
    ) -> None:
        """Store the cost of one round of questions to a teacher; the same batch counts once.

        :param job: for which the questions were asked, such as the id of a refresh.
        :param teacher: name of the teacher; ``version`` is its version.
        :param as_of: the time in the agent's life to which the cost belongs.
        """
        row = spent.model_dump() | {
            "job": job,
            "purpose": purpose,
            "teacher": teacher,
            "version": version,
            "observed_at": as_of,
            "asked_at": datetime.now(UTC),
        }
        self._tables.append("spending", pd.DataFrame([row]), batch=batch)

    def spending(
        self,
        *,
        job: str | None = None,
        purpose: Purpose | None = None,
        after: datetime | None = None,
        until: datetime | None = None,
        asked_since: datetime | None = None,
    ) -> dict[str, Spending]:
        """The total cost of each teacher, by its name.

        :param job: only of this job; likewise ``purpose``.
        :param after: only of later times in the agent's life, until ``until`` (included).
        :param asked_since: only of questions asked from then on, by the wall clock.
        """
        filters: list[tuple[str, str, Any]] = [
            ("job", "=", job),
            ("purpose", "=", purpose),
            ("observed_at", ">", after),
            ("observed_at", "<=", until),
            ("asked_at", ">=", asked_since),
        ]
        clauses: Any = [clause for clause in filters if clause[2] is not None]
        figures = list(Spending.model_fields)
        rows = self._tables.select("spending", ["teacher", *figures], *clauses).to_pandas()
        totals = rows.groupby("teacher")[figures].sum()
        return {str(name): Spending.model_validate(total.to_dict()) for name, total in totals.iterrows()}
