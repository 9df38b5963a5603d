"""MLflow runs of one agent: a parent run per refresh, a run per watched champion, and the contents of runs."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, Union

from pydantic import ValidationError

from stillhouse.config import home
from stillhouse.errors import RegistryError
from stillhouse.records import Certificate, Examination, Record, SameRows, Verdict, Window, short_id
from stillhouse.registry.cache import Cache
from stillhouse.registry.downloads import read_artifact, write_local
from stillhouse.registry.entries import OpenedRefresh, Points
from stillhouse.registry.experiment import Experiment
from stillhouse.registry.names import SAME_ROWS, VERDICT
from stillhouse.shown import escape_markdown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["PARENT_RUN_TAG", "Content", "Runs", "artifact_cache", "days_since_1970", "stringify", "timestamp_now"]

AnyRecord = TypeVar("AnyRecord", bound=Record)

Content: TypeAlias = Union[bytes, Record, "Figure"]
"""Content of an artifact: bytes, a record (written as JSON), or a figure (in the format of the path's suffix)."""

PARENT_RUN_TAG = "mlflow.parentRunId"
_RUN_NAME_TAG = "mlflow.runName"
_MAX_ENTRIES_PER_CALL, _MAX_PARAMS_PER_CALL, _MAX_TAGS_PER_CALL = 1000, 100, 100  # MLflow's limits; metrics are entries
_MAX_REASON = 4500  # characters; MLflow allows 5000 in a tag, and the description has a word before
_MAX_READ_REFRESHES = 5  # newest ones; a refresh whose teacher was refused has no figures
_DIGEST_ROWS = 1000  # together with the table versions, a digest of these rows only has to tell frames apart

_artifact_roots: Cache[str] = Cache()
"""Address of a run's artifacts, by tracking URI and run id."""
_refresh_ids: Cache[str] = Cache()
"""Refresh id of a parent run, by tracking URI and run id."""
artifact_cache: Cache[Any] = Cache(64)
"""Parsed artifacts of finished runs, by tracking URI, run or model id, and path."""


class Runs:
    """Opens, fills, reads and closes the runs of one agent.

    :param experiment: holds the runs.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._client = experiment.client
        self._agent = experiment.name

    # ----------------------------------------------------------------- refreshes

    def open_refresh(
        self, refresh_id: str, *, tags: Mapping[str, object], params: Mapping[str, object], name: str | None = None
    ) -> OpenedRefresh:
        """Open a running parent run for ``refresh_id``.

        If an earlier run of this refresh holds a verdict but did not finish, that run is reopened and its verdict
        returned: the caller only has to act on it. All other unfinished runs of this refresh are marked KILLED, with
        their nested runs. So is every other refresh that is still marked as running: only one may run at a time, so
        its process must have died.
        """
        self._kill_other_refreshes(refresh_id)
        unfinished = [run for run in self._refresh_runs(refresh_id) if run.info.status != "FINISHED"]
        verdicts = {run.info.run_id: self.read_record(run.info.run_id, VERDICT, Verdict) for run in unfinished}
        resumed = next((run_id for run_id, verdict in verdicts.items() if verdict is not None), None)
        for run_id in verdicts:
            self._kill_nested(run_id)
        for run in unfinished:
            if run.info.run_id != resumed and run.info.status == "RUNNING":
                self._kill(run.info.run_id, "a later run of the same refresh found it unfinished, without a verdict")
        if resumed is not None:
            self._client.update_run(resumed, status="RUNNING")
            verdict = verdicts[resumed]
            self._log_batch(resumed, tags={"mlflow.note.content": escape_markdown(verdict.summary if verdict else "")})
            return OpenedRefresh(resumed, verdict)
        all_tags = {"refresh_id": refresh_id, "role": "refresh", "agent": self._agent} | dict(tags)
        run = self._create_run(name or f"refresh-{refresh_id}", all_tags)
        self._log_batch(run, params=params)
        _refresh_ids.put((self.experiment.uri, run), refresh_id)
        return OpenedRefresh(run, None)

    def finished_refresh(self, refresh_id: str) -> Verdict | None:
        """The verdict of this refresh if one of its runs has finished."""
        finished = [run.info.run_id for run in self._refresh_runs(refresh_id) if run.info.status == "FINISHED"]
        verdicts = (self.read_record(run_id, VERDICT, Verdict) for run_id in finished)
        return next(filter(None, verdicts), None)

    def has_refresh(self, cause: str, as_of: datetime) -> bool:
        """Whether a refresh of that cause and time was ever opened, however it ended.

        :param cause: the id of a verdict.
        """
        query = f"tags.role = 'refresh' and tags.cause = '{cause}' and tags.as_of = '{as_of.isoformat()}'"
        return bool(self._search(query, max_results=1))

    def log_verdict(
        self,
        run_id: str,
        certificate: Certificate | Examination,
        verdict: Verdict,
        *,
        name: str | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Write ``certificate.json``, then ``verdict.json``, which decides the refresh.

        Call this before an alias moves, so that no model is promoted without its certificate.

        :param certificate: for a refused teacher its examination, written to ``examination.json``.
        :param name: new name of the run; None: it keeps its name.
        :param metrics: what the verdict was decided on.
        """
        self.log_record(run_id, certificate, f"{type(certificate).__name__.lower()}.json")
        self.log_record(run_id, verdict, VERDICT)
        tags = {
            "verdict": verdict.verdict_id,
            "result": verdict.result,
            "mlflow.note.content": escape_markdown(verdict.summary),
            _RUN_NAME_TAG: name,
        }
        self._log_batch(run_id, tags=tags, metrics=metrics)

    def close_refresh(self, run_id: str, *, failed: str | None = None, killed: str | None = None) -> None:
        """End the run as FINISHED, or with a reason as FAILED or KILLED; the reason becomes its description.

        :param failed: the error, in words; the tag ``failed``.
        :param killed: who or what has stopped it, in words; the tag ``killed``.
        """
        if failed is not None:
            self._end_early(run_id, "FAILED", failed[:_MAX_REASON])
        elif killed is not None:
            self._end_early(run_id, "KILLED", killed[:_MAX_REASON])
        else:
            self._client.set_terminated(run_id)

    def refresh_id(self, run_id: str) -> str:
        """The refresh id of a parent run; empty for other runs."""
        return _refresh_ids.get((self.experiment.uri, run_id), lambda: self.tags(run_id).get("refresh_id", ""))

    # ----------------------------------------------------------------- watches

    def open_watch(self, champion: str, since: datetime) -> str:
        """The single run that collects all watches of ``champion`` since ``since``; the first watch creates it."""
        watch_id = short_id(champion, since.isoformat())
        existing = self._search(f"tags.role = 'watch' and tags.watch_id = '{watch_id}'", max_results=1)
        if existing:
            return str(existing[0].info.run_id)
        tags = {
            "role": "watch",
            "watch_id": watch_id,
            "agent": self._agent,
            "champion": champion,
            "since": since.isoformat(),
        }
        run_id = self._create_run(f"watch {champion} since {since:%Y-%m-%d}", tags)
        self._client.set_terminated(run_id)  # no later event ends a watch; MLflow accepts metrics after the end
        return run_id

    # ----------------------------------------------------------------- curves over all versions

    def newest_same_rows(self) -> SameRows | None:
        """The figures on the newest test window that a finished refresh has logged; None if there is none."""
        query = "tags.role = 'refresh' and attributes.status = 'FINISHED'"
        runs = self._search(query, order_by=["attributes.start_time DESC"], max_results=_MAX_READ_REFRESHES)
        records = (self.read_record(run.info.run_id, SAME_ROWS, SameRows) for run in runs)
        return next(filter(None, records), None)

    def log_curves(self, moment: datetime, values: Mapping[str, float]) -> None:
        """Add points to the one run that holds the agent's curves over all versions; the first point creates it.

        :param moment: of the points; their step is its day.
        :param values: by name of the curve, such as ``champion``; the metric is ``quality_champion``.
        """
        existing = self._search("tags.role = 'curves'", max_results=1)
        if existing:
            run_id = str(existing[0].info.run_id)
        else:
            note = "Quality on every new test window: at each time all models are measured on the same rows."
            tags = {"role": "curves", "agent": self._agent, "mlflow.note.content": note}
            run_id = self._create_run("quality of all champions over time", tags)
            self._client.set_terminated(run_id)  # MLflow accepts metrics after the end
        metrics = {f"quality_{name}": value for name, value in values.items()}
        self._log_batch(run_id, points=[(moment, days_since_1970(moment), metrics)])

    # ----------------------------------------------------------------- contents of a run

    def create_nested(self, parent_id: str, name: str, tags: Mapping[str, object]) -> str:
        """Create a running run below ``parent_id``; returns its id."""
        return self._create_run(name, {PARENT_RUN_TAG: parent_id, **tags})

    def create_parent(self, name: str, tags: Mapping[str, object], params: Mapping[str, object]) -> str:
        """Create a running run that is not a refresh; returns its id."""
        run_id = self._create_run(name, tags)
        self._log_batch(run_id, params=params)
        return run_id

    def tags(self, run_id: str) -> dict[str, str]:
        """The tags of a run."""
        return dict(self._client.get_run(run_id).data.tags)

    def params(self, run_id: str) -> dict[str, str]:
        """The parameters of a run."""
        return dict(self._client.get_run(run_id).data.params)

    def set_tags(self, run_id: str, **tags: object) -> None:
        """Set tags of a run; None sets no tag."""
        self._log_batch(run_id, tags=tags)

    def log(
        self,
        run_id: str,
        *,
        files: Mapping[str, Content] | None = None,
        metrics: Mapping[str, float] | None = None,
        history: Sequence[Mapping[str, float]] = (),
        points: Points = (),
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        model_id: str | None = None,
        run_metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Log all contents of a run: its files in one call, then metrics, params and tags in a second call.

        :param files: content by artifact path, see :meth:`log_files`.
        :param metrics: metrics of step 0.
        :param history: metrics of steps 1, 2, …, such as the losses by epoch.
        :param model_id: logged model that gets ``metrics`` and ``points`` too.
        :param run_metrics: metrics of step 0 that the run gets, but not the model.
        """
        if files:
            self.log_files(run_id, files)
        self._log_batch(
            run_id,
            metrics=metrics,
            history=history,
            points=points,
            params=params,
            tags=tags,
            model_id=model_id,
            run_metrics=run_metrics,
        )

    def log_files(self, run_id: str, files: Mapping[str, Content]) -> None:
        """Write artifacts of the run, by path, in one call.

        A single file appears complete or not at all. If the process is killed while it writes several files, some
        may be missing and one truncated.

        :raises RegistryError: if a path leads out of the run's artifacts.
        """
        if not files:
            return
        with TemporaryDirectory() as folder:
            for path, content in files.items():
                local = Path(folder, _checked_path(path))
                local.parent.mkdir(parents=True, exist_ok=True)
                local.write_bytes(_to_bytes(content, path))
            if len(files) == 1:
                self._client.log_artifact(run_id, str(local), str(Path(path).parent).removeprefix(".") or None)
            else:
                self._client.log_artifacts(run_id, folder)
        for path in files:
            artifact_cache.pop((self.experiment.uri, run_id, path))

    def replace_file(self, run_id: str, path: str, content: bytes) -> None:
        """Write an artifact of the run over the old one."""
        root = str(self._client.get_run(run_id).info.artifact_uri)
        if write_local(root, path, content):
            artifact_cache.pop((self.experiment.uri, run_id, path))
        else:
            self.log_files(run_id, {path: content})

    def log_record(self, run_id: str, record: Record, path: str) -> None:
        """Write ``record`` as JSON to the artifact ``path`` of the run."""
        self.log_files(run_id, {path: record})

    def read_record(self, run_id: str, path: str, kind: type[AnyRecord]) -> AnyRecord | None:
        """The record in the artifact ``path`` of the run; None if it does not exist or is truncated."""
        content = self._read(run_id, path)
        if content is None:
            return None
        try:
            return kind.model_validate_json(content)
        except ValidationError:
            return None

    def read_file(self, run_id: str, path: str) -> bytes:
        """The content of the artifact ``path`` of the run.

        :raises RegistryError: if it does not exist.
        """
        content = self._read(run_id, path)
        if content is None:
            raise RegistryError(f"run {run_id} of {self._agent!r} has no artifact {path}")
        return content

    def log_table(self, run_id: str, table: Mapping[str, Sequence[object]], path: str) -> None:
        """Write columns by name as a table that MLflow's pages display; ``path`` ends in ``.json``."""
        self._client.log_table(run_id, {name: list(column) for name, column in table.items()}, path)

    def log_window(self, run_id: str, window: Window, rows: pd.DataFrame, context: str) -> None:
        """Log ``window`` as a dataset input: its table versions, columns, row count and a digest.

        :param rows: the rows of the window; about a thousand of them are hashed.
        :param context: what the run uses the window for, such as ``"train"``.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        sample = rows.iloc[:: max(1, len(rows) // _DIGEST_ROWS)]
        source = {"path": str(home() / "knowledge" / self._agent), **window.model_dump(mode="json")}
        columns = [{"name": str(name), "type": _mlflow_type(rows[name])} for name in rows.columns]
        dataset = Dataset(
            name=window.name,
            digest=short_id(window.model_dump_json(), len(rows), sample.to_csv(index=False)),
            source_type="delta",
            source=json.dumps(source),
            schema=json.dumps({"mlflow_colspec": columns}),
            profile=json.dumps({"num_rows": len(rows), "num_elements": int(rows.size)}),
        )
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    # ----------------------------------------------------------------- internals

    def _create_run(self, name: str, tags: Mapping[str, object]) -> str:
        run = self._client.create_run(self.experiment.experiment_id, run_name=name, tags=stringify(tags))
        return str(run.info.run_id)

    def _search(self, query: str, **options: Any) -> list[Any]:
        return list(self._client.search_runs([self.experiment.experiment_id], query, **options))

    def _refresh_runs(self, refresh_id: str) -> list[Any]:
        """Parent runs of this refresh, newest first."""
        query = f"tags.refresh_id = '{refresh_id}' and tags.role = 'refresh'"
        return self._search(query, order_by=["attributes.start_time DESC"])

    def _kill_other_refreshes(self, refresh_id: str) -> None:
        query = f"tags.role = 'refresh' and tags.refresh_id != '{refresh_id}' and attributes.status = 'RUNNING'"
        for run in self._search(query):
            self._kill_nested(run.info.run_id)
            self._kill(run.info.run_id, f"found running when refresh {refresh_id} began")

    def _kill_nested(self, run_id: str) -> None:
        for nested in self._search(f"tags.`{PARENT_RUN_TAG}` = '{run_id}' and attributes.status = 'RUNNING'"):
            self._kill(nested.info.run_id, "its refresh run was killed")

    def _kill(self, run_id: str, reason: str) -> None:
        self._end_early(run_id, "KILLED", reason)

    def _end_early(self, run_id: str, status: Literal["FAILED", "KILLED"], reason: str) -> None:
        """End the run with this status; tag and description say why."""
        word = status.lower()
        tags = {word: reason, "mlflow.note.content": escape_markdown(f"{word}: {reason}")}
        self._log_batch(run_id, tags=tags)
        self._client.set_terminated(run_id, status=status)

    def _log_batch(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        history: Sequence[Mapping[str, float]] = (),
        points: Points = (),
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        model_id: str | None = None,
        run_metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Log metrics, params and tags in as few calls as MLflow's limits allow; parameters as of :meth:`log`."""
        from mlflow.entities import Metric, Param, RunTag

        now_ms = int(time.time() * 1000)
        values = [Metric(name, value, now_ms, 0, model_id=model_id) for name, value in (metrics or {}).items()]
        values += [Metric(name, value, now_ms, 0) for name, value in (run_metrics or {}).items()]
        values += [
            Metric(name, value, now_ms, epoch)
            for epoch, losses in enumerate(history, start=1)
            for name, value in losses.items()
        ]
        values += [
            Metric(name, value, int(moment.timestamp() * 1000), step, model_id=model_id)
            for moment, step, levels in points
            for name, value in levels.items()
        ]
        all_params = [Param(name, value) for name, value in stringify(params or {}).items()]
        all_tags = [RunTag(name, value) for name, value in stringify(tags or {}).items()]
        while values or all_params or all_tags:
            batch_params, batch_tags = all_params[:_MAX_PARAMS_PER_CALL], all_tags[:_MAX_TAGS_PER_CALL]
            max_metrics = _MAX_ENTRIES_PER_CALL - len(batch_params) - len(batch_tags)
            self._client.log_batch(run_id, metrics=values[:max_metrics], params=batch_params, tags=batch_tags)
            values = values[max_metrics:]
            all_params, all_tags = all_params[_MAX_PARAMS_PER_CALL:], all_tags[_MAX_TAGS_PER_CALL:]

    def _read(self, run_id: str, path: str) -> bytes | None:
        root = _artifact_roots.get(
            (self.experiment.uri, run_id), lambda: str(self._client.get_run(run_id).info.artifact_uri)
        )
        return read_artifact(root, path, self.experiment.uri)


def timestamp_now() -> str:
    """The current time in UTC as ISO 8601, for a tag."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def days_since_1970(moment: datetime) -> int:
    """The step of a metric at a time of the agent's life; MLflow shows the value of the largest step.

    >>> days_since_1970(datetime(2013, 5, 1, 23, tzinfo=UTC))
    15826
    """
    return int(moment.timestamp() // 86_400)


def stringify(values: Mapping[str, object]) -> dict[str, str]:
    """Values as strings, as MLflow stores tags and params; None is left out."""
    return {name: str(value) for name, value in values.items() if value is not None}


def _to_bytes(content: Content, path: str) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, Record):
        return content.model_dump_json(indent=1).encode()
    buffer = io.BytesIO()
    content.savefig(buffer, format=PurePosixPath(path).suffix.removeprefix("."))
    return buffer.getvalue()


def _checked_path(path: str) -> str:
    """:raises RegistryError: if ``path`` leads out of the run's artifacts."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise RegistryError(f"{path!r} is no path of an artifact: it leads out of the run's files")
    return path


def _mlflow_type(column: pd.Series[Any]) -> str:
    kinds = {"f": "double", "i": "long", "u": "long", "b": "boolean", "M": "datetime"}
    return kinds.get(column.dtype.kind, "string")
