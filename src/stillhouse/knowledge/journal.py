"""What the system decided and why: verdicts, steps of evidence, changes of teacher weights, scores of the pool."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import pandas as pd
import pyarrow.compute as pc

from stillhouse.knowledge.pruning import Clause
from stillhouse.knowledge.tables import Tables
from stillhouse.records import (
    BlockScore,
    EvidenceRows,
    EvidenceStep,
    Process,
    Verdict,
    VerdictResult,
    WeightChange,
    short_id,
)

__all__ = ["Journal"]

Kind = Literal["watch", "gate", "promotion", "forget"]


class Journal:
    """The tables ``verdicts``, ``evidence``, ``weights`` and ``scores`` of one agent."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    # ----------------------------------------------------------------- verdicts

    def append_verdict(self, verdict: Verdict) -> None:
        """Store a verdict; one of the same id is written once."""
        row = {
            "verdict_id": verdict.verdict_id,
            "kind": verdict.kind,
            "observed_at": verdict.as_of,
            "recorded_at": datetime.now(UTC),
            "outcome": verdict.result,
            "json": verdict.model_dump_json(),
        }
        self._tables.append("verdicts", pd.DataFrame([row]), batch=verdict.verdict_id)

    def verdicts(
        self,
        kind: Kind | None = None,
        as_of: datetime | None = None,
        since: datetime | None = None,
        results: Sequence[VerdictResult] | None = None,
    ) -> list[Verdict]:
        """Verdicts in the order of ``as_of``, then of recording.

        :param kind: only of this kind; None: of all kinds.
        :param as_of: only with exactly this time.
        :param since: only with this time or a later one.
        :param results: only with one of these results.
        """
        clauses = list[Clause]()
        if kind is not None:
            clauses.append(("kind", "=", kind))
        if as_of is not None:
            clauses.append(("observed_at", "=", as_of))
        if since is not None:
            clauses.append(("observed_at", ">=", since))
        if results is not None:
            clauses.append(("outcome", "in", list(results)))
        columns = ["verdict_id", "observed_at", "recorded_at", "json"]
        rows = self._tables.select("verdicts", columns, *clauses).to_pandas()
        rows = rows.sort_values(["observed_at", "recorded_at"], kind="stable").drop_duplicates("verdict_id")
        return [Verdict.model_validate_json(text) for text in rows["json"]]

    def decided(self, last: int) -> list[tuple[datetime, Verdict]]:
        """The newest ``last`` verdicts in the order in which they were decided, each with the time of its recording.

        That order differs from :meth:`verdicts` where a watch or refresh was run for an earlier time.
        """
        rows = self._tables.select("verdicts", ["verdict_id", "recorded_at", "json"]).to_pandas()
        rows = rows.sort_values("recorded_at", kind="stable").drop_duplicates("verdict_id").tail(last)
        texts = zip(rows["recorded_at"], rows["json"], strict=True)
        return [(recorded_at.to_pydatetime(), Verdict.model_validate_json(text)) for recorded_at, text in texts]

    def verdict(self, verdict_id: str) -> Verdict | None:
        """The verdict of that id; None if it was not recorded."""
        return self._last_verdict(("verdict_id", "=", verdict_id))

    def recorded_at(self, verdict_id: str) -> datetime | None:
        """When a verdict was decided, by the clock of that machine; None if it was not recorded."""
        rows = self._tables.select("verdicts", ["recorded_at"], ("verdict_id", "=", verdict_id))
        times: list[datetime] = rows["recorded_at"].to_pylist()
        return min(times, default=None)

    def verdict_at(self, kind: Literal["watch", "gate"], as_of: datetime) -> Verdict | None:
        """The last recorded verdict of that kind with exactly that time; None if there is none."""
        return self._last_verdict(("kind", "=", kind), ("observed_at", "=", as_of))

    def last_refresh(self, before: datetime | None = None) -> datetime | None:
        """The time of the last refresh (before ``before``) that has a gate verdict, whatever its result."""
        last = self._last_gate_row(before)
        return None if last is None else last["observed_at"]

    def last_refresh_refused(self, before: datetime | None = None) -> bool:
        """Whether the gate refused the refresh of :meth:`last_refresh`."""
        last = self._last_gate_row(before)
        return last is not None and last["outcome"] == "refused"

    def results(self, kind: Kind, since: datetime | None = None) -> dict[str, tuple[VerdictResult, datetime]]:
        """Result and time of the verdicts of that kind by id, without reading the verdicts themselves."""
        clauses: list[Clause] = [("kind", "=", kind)]
        if since is not None:
            clauses.append(("observed_at", ">=", since))
        rows = self._tables.select("verdicts", ["verdict_id", "outcome", "observed_at"], *clauses).to_pylist()
        return {row["verdict_id"]: (row["outcome"], row["observed_at"]) for row in rows}

    def last_verdict(self, kind: Kind, before: datetime | None = None) -> Verdict | None:
        """The verdict of that kind with the latest time (before ``before``); None if there is none."""
        clauses: list[Clause] = [("kind", "=", kind)]
        if before is not None:
            clauses.append(("observed_at", "<", before))
        last = self._tables.select_last("verdicts", ["recorded_at", "json"], *clauses)
        return None if last is None else Verdict.model_validate_json(last["json"])

    def _last_gate_row(self, before: datetime | None) -> dict[str, Any] | None:
        clauses: list[Clause] = [("kind", "=", "gate")]
        if before is not None:
            clauses.append(("observed_at", "<", before))
        return self._tables.select_last("verdicts", ["recorded_at", "outcome"], *clauses)

    def _last_verdict(self, *clauses: Clause) -> Verdict | None:
        rows = self._tables.select("verdicts", ["recorded_at", "json"], *clauses)
        texts = rows.sort_by("recorded_at")["json"].to_pylist()
        return Verdict.model_validate_json(texts[-1]) if texts else None

    # ----------------------------------------------------------------- evidence

    def append_evidence(self, steps: Sequence[EvidenceRows]) -> None:
        """Store steps of evidence in one commit; a step that is stored already is not written again."""
        latest = {step.process: step.end for step in self.latest_evidence()}
        new = [counted for counted in steps if counted.step.end > latest.get(counted.step.process, counted.step.since)]
        if not new:
            return
        rows = pd.DataFrame(
            {
                "process": counted.step.process,
                "champion": counted.step.champion,
                "since": counted.step.since,
                "observed_at": counted.step.end,
                "observation_ids": list(counted.observation_ids),
                "units": list(counted.cluster_ids),
                "probabilities": list(counted.probabilities),
                "weights": list(counted.sampling_weights),
                "losses": list(counted.losses),
                "json": counted.step.model_dump_json(),
            }
            for counted in new
        )
        self._tables.append("evidence", rows, batch=f"evidence:{short_id(*rows['json'])}")

    def latest_evidence(self) -> list[EvidenceStep]:
        """The last step of each process, of the champion that was watched last."""
        last = [
            self._tables.select_last("evidence", ["json"], ("process", "=", process)) for process in get_args(Process)
        ]
        steps = [EvidenceStep.model_validate_json(row["json"]) for row in last if row is not None]
        return sorted(steps, key=lambda step: step.end)

    def evidence(self, champion: str, since: datetime | None, after: datetime | None = None) -> list[EvidenceRows]:
        """Steps of the evidence on ``champion`` that began at ``since``, oldest first.

        :param since: None: regardless of when the evidence began.
        :param after: only steps that end later.
        """
        clauses: list[Clause] = [("champion", "=", champion)]
        if since is not None:
            clauses.append(("since", "=", since))
        if after is not None:
            clauses.append(("observed_at", ">", after))
        columns = ["observed_at", "json", "observation_ids", "units", "probabilities", "weights", "losses"]
        rows = self._tables.select("evidence", columns, *clauses).sort_by("observed_at").to_pylist()
        return [
            EvidenceRows(
                step=EvidenceStep.model_validate_json(row["json"]),
                observation_ids=tuple(row["observation_ids"]),
                cluster_ids=tuple(row["units"]),
                probabilities=tuple(row["probabilities"]),
                sampling_weights=tuple(row["weights"]),
                losses=tuple(row["losses"]),
            )
            for row in rows
        ]

    def steps(self, since: datetime) -> list[EvidenceStep]:
        """The steps of the evidence on all champions that end at ``since`` or later, oldest first, without rows."""
        rows = self._tables.select("evidence", ["observed_at", "json"], ("observed_at", ">=", since))
        return [EvidenceStep.model_validate_json(text) for text in rows.sort_by("observed_at")["json"].to_pylist()]

    # ----------------------------------------------------------------- weights of teachers

    def append_weight_changes(self, changes: Sequence[WeightChange]) -> None:
        """Store changes of teacher weights; those of one job, version and time are written once."""
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
        self._tables.append("weights", rows, batch=f"weights:{last.version}:{last.job}:{last.as_of.isoformat()}")

    def weight_changes(self, version: str | None = None) -> list[WeightChange]:
        """Changes of teacher weights, oldest first.

        An interrupted refresh that was repeated with more answers has recorded twice: its last changes are returned.

        :param version: only of this version of the teachers.
        """
        clauses = list[Clause]()
        if version is not None:  # another version may have replaced its changes at the same times
            times = self._tables.select("weights", ["observed_at"], ("version", "=", version))["observed_at"]
            if not len(times):
                return []
            clauses = [("observed_at", ">=", pc.min(times).as_py()), ("observed_at", "<=", pc.max(times).as_py())]
        columns = ["job", "version", "observed_at", "recorded_at", "teacher", "slice", "json"]
        rows = self._tables.select("weights", columns, *clauses).to_pandas()
        rows = rows.sort_values(["observed_at", "recorded_at"], kind="stable")
        rows = rows.drop_duplicates(["job", "observed_at", "teacher", "slice"], keep="last")
        of_version = rows if version is None else rows[rows["version"] == version]
        return [WeightChange.model_validate_json(text) for text in of_version["json"]]

    # ----------------------------------------------------------------- scores of the pool

    def append_scores(self, scores: Sequence[BlockScore], rule: str) -> int:
        """Store scores of complete blocks in one commit; those of one member, block and rule are stored once.

        :param rule: key of everything but rows and model that the scores depend on: the length of the blocks, the
            delay of outcomes, the measure.
        :returns: number of scores written.
        :raises ValueError: if a block is not complete.
        """
        if not all(score.complete for score in scores):
            raise ValueError("only complete blocks are stored: the rows of a younger one may still change")
        if not scores:
            return 0
        earliest = min(score.start for score in scores)
        stored = {(score.member, score.start) for score in self.scores(rule, since=earliest, with_rows=False)}
        rows = pd.DataFrame(
            {
                "member": score.member,
                "observed_at": score.start,
                "end": score.end,
                "rule": rule,
                "rows": score.rows,
                "rows_key": score.rows_key,
                "log_loss": score.log_loss,
                "half_brier": score.half_brier,
                "accuracy": score.accuracy,
                "score": score.score,
                "probabilities": list(score.probs),
                "labels": list(score.labels),
            }
            for score in scores
            if (score.member, score.start) not in stored
        )
        if rows.empty:
            return 0
        blocks = (
            f"{member}:{start.isoformat()}" for member, start in zip(rows["member"], rows["observed_at"], strict=True)
        )
        return self._tables.append("scores", rows, batch=f"scores:{short_id(rule, *blocks)}")

    def scores(
        self, rule: str, since: datetime | None = None, member: str | None = None, *, with_rows: bool = True
    ) -> list[BlockScore]:
        """Stored scores of complete blocks, by time, then member.

        :param rule: as in :meth:`append_scores`; scores by another rule are not comparable.
        :param since: only of blocks that begin then or later.
        :param member: only of this one.
        :param with_rows: whether to read probabilities and labels row by row, which only the AUC needs.
        """
        clauses: list[Clause] = [("rule", "=", rule)]
        if since is not None:
            clauses.append(("observed_at", ">=", since))
        if member is not None:
            clauses.append(("member", "=", member))
        names = ["member", "observed_at", "end", "rows", "rows_key", "log_loss", "half_brier", "accuracy", "score"]
        names += ["probabilities", "labels"] if with_rows else []
        rows = self._tables.select("scores", names, *clauses).sort_by([("observed_at", "ascending")]).to_pylist()
        once = {(row["observed_at"], row["member"]): row for row in rows}
        return [_block_score(once[key]) for key in sorted(once)]


def _block_score(row: dict[str, Any]) -> BlockScore:
    """A stored row as a record; the values were validated when they were written."""
    return BlockScore.model_construct(
        start=row.pop("observed_at"),
        complete=True,
        probs=tuple(row.pop("probabilities", ())),
        labels=tuple(row.pop("labels", ())),
        **row,
    )
