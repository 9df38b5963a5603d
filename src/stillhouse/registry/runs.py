"""One parent run per refresh: opened, filled, and closed or taken up again after a crash."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

from pydantic import ValidationError

from stillhouse.config import home
from stillhouse.errors import RegistryError
from stillhouse.records import Certificate, Examination, Record, Verdict, Window, short_id
from stillhouse.registry.connection import artifact_location, connect, does_not_exist, without_credentials
from stillhouse.registry.entries import OpenedRefresh
from stillhouse.registry.names import VERDICT
from stillhouse.registry.remembered import Remembered
from stillhouse.shown import markdown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["PARENT", "Content", "Points", "Runs", "now", "read_before", "texts"]

AnyRecord = TypeVar("AnyRecord", bound=Record)

Content: TypeAlias = Union[bytes, Record, "Figure"]
"""What an artifact is made from: its bytes, a record (as JSON), or a figure (in the format of the path's suffix)."""

Points: TypeAlias = Sequence[tuple[datetime, int, Mapping[str, float]]]
"""Metrics at moments of the agent's life: time, step and the values."""

PARENT = "mlflow.parentRunId"
_ENTRIES_PER_CALL, _PARAMS_PER_CALL, _TAGS_PER_CALL = 1000, 100, 100  # MLflow takes no more; metrics count as entries
_DIGEST_ROWS = 1000  # with the table versions, a digest need only tell frames apart

_roots: Remembered[str] = Remembered()
"""Where a run's artifacts lie, by tracking URI and run id."""
_refresh_ids: Remembered[str] = Remembered()
"""Of parent runs, by tracking URI and run id."""
read_before: Remembered[Any] = Remembered(64)
"""What was read of runs that are finished, by tracking URI, run or model id and path."""


class Runs:
    """The experiment of one agent, and its refresh runs.

    :param tracking_uri: by default ``MLFLOW_TRACKING_URI``, else SQLite under ``STILLHOUSE_HOME``.
    :raises RegistryError: if MLflow does not answer.
    """

    def __init__(self, agent: str, tracking_uri: str | None = None) -> None:
        self.agent = agent
        self.client = connect(tracking_uri)
        self.uri = self.client.uri
        self.experiment_id = self._experiment()

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.agent)
        if found is None:
            try:
                return str(self.client.create_experiment(self.agent, artifact_location=artifact_location(self.uri)))
            except RegistryError:
                found = self.client.get_experiment_by_name(self.agent)
                if found is None:  # else another process was faster
                    raise
        if found.lifecycle_stage == "deleted":
            raise RegistryError(
                f"the experiment {self.agent!r} at {without_credentials(self.uri)} is deleted; "
                f"restore it: mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        return str(found.experiment_id)

    # ----------------------------------------------------------------- a refresh

    def open_refresh(
        self, refresh_id: str, *, tags: Mapping[str, object], params: Mapping[str, object], name: str | None = None
    ) -> OpenedRefresh:
        """A running parent run for ``refresh_id``.

        An unfinished earlier run that already holds a verdict is taken up again and its verdict returned: what
        is left to do is to act on it. Other unfinished runs of the same refresh, and whatever nested runs they
        left open, are marked KILLED, and so is any other refresh still marked as running: only one may run at a time,
        so its process is gone.
        """
        self._kill_others(refresh_id)
        unfinished = [run for run in self._refresh_runs(refresh_id) if run.info.status != "FINISHED"]
        verdicts = {run.info.run_id: self.read_record(run.info.run_id, VERDICT, Verdict) for run in unfinished}
        resumed = next((run_id for run_id, verdict in verdicts.items() if verdict is not None), None)
        for run_id in verdicts:
            self._kill_nested(run_id)
        for run in unfinished:
            if run.info.run_id != resumed and run.info.status == "RUNNING":
                self._kill(run.info.run_id, "a later run of the same refresh found it unfinished, without a verdict")
        if resumed is not None:
            self.client.update_run(resumed, status="RUNNING")
            return OpenedRefresh(resumed, verdicts[resumed])
        marks = {"refresh_id": refresh_id, "role": "refresh", "agent": self.agent} | dict(tags)
        run = self.client.create_run(self.experiment_id, run_name=name or f"refresh-{refresh_id}", tags=texts(marks))
        self._log_batch(run.info.run_id, params=params)
        _refresh_ids.put((self.uri, run.info.run_id), refresh_id)
        return OpenedRefresh(run.info.run_id, None)

    def finished_refresh(self, refresh_id: str) -> Verdict | None:
        """The verdict of this refresh if one of its runs has finished."""
        finished = [run.info.run_id for run in self._refresh_runs(refresh_id) if run.info.status == "FINISHED"]
        verdicts = (self.read_record(run_id, VERDICT, Verdict) for run_id in finished)
        return next(filter(None, verdicts), None)

    def has_refresh(self, cause: str, as_of: datetime) -> bool:
        """Whether a refresh of that cause and moment was ever opened, however it ended.

        :param cause: the id of a verdict.
        """
        wanted = f"tags.role = 'refresh' and tags.cause = '{cause}' and tags.as_of = '{as_of.isoformat()}'"
        return bool(self.client.search_runs([self.experiment_id], wanted, max_results=1))

    def log_verdict(self, run_id: str, certificate: Certificate | Examination, verdict: Verdict) -> None:
        """Write ``certificate.json``, then ``verdict.json``: from then on the refresh is decided.

        To be called before an alias moves, so that no model is promoted without its proof. Where a teacher is refused,
        the certificate is its examination, in ``examination.json``.
        """
        self.log_record(run_id, certificate, f"{type(certificate).__name__.lower()}.json")
        self.log_record(run_id, verdict, VERDICT)
        marks = {
            "verdict": verdict.verdict_id,
            "result": verdict.result,
            "mlflow.note.content": markdown(verdict.summary),
        }
        self._log_batch(run_id, tags=marks)

    def close_refresh(self, run_id: str, *, failed: str | None = None) -> None:
        """End the run as FINISHED, or as FAILED with the reason."""
        if failed is not None:
            self._log_batch(run_id, tags={"failed": failed[:5000]})
        self.client.set_terminated(run_id, status="FINISHED" if failed is None else "FAILED")

    # ----------------------------------------------------------------- watching

    def open_watch(self, champion: str, since: datetime) -> str:
        """The one run that shows how ``champion`` has done since ``since``; opened by the first watch of it."""
        mark = short_id(champion, since.isoformat())
        wanted = f"tags.role = 'watch' and tags.watch_id = '{mark}'"
        found = self.client.search_runs([self.experiment_id], wanted, max_results=1)
        if found:
            return str(found[0].info.run_id)
        marks = {
            "role": "watch",
            "watch_id": mark,
            "agent": self.agent,
            "champion": champion,
            "since": since.isoformat(),
        }
        name = f"watch {champion} since {since:%Y-%m-%d}"
        run = self.client.create_run(self.experiment_id, run_name=name, tags=texts(marks))
        self.client.set_terminated(run.info.run_id)  # a watch has no end of its own; metrics may still be added
        return str(run.info.run_id)

    def log_curve(self, run_id: str, points: Points) -> None:
        """Log metrics at moments of the agent's life, all in one call."""
        self.log(run_id, points=points)

    def run_tags(self, run_id: str) -> dict[str, str]:
        """Tags of a run."""
        return dict(self.client.get_run(run_id).data.tags)

    def tag(self, run_id: str, **tags: object) -> None:
        """Set tags of a run."""
        self._log_batch(run_id, tags=tags)

    # ----------------------------------------------------------------- what a run holds

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
    ) -> None:
        """Whatever belongs to a run: its files in one call, then all metrics, params and tags in one more.

        :param files: by artifact path, see :meth:`log_files`.
        :param metrics: of step 0.
        :param history: metrics of steps 1, 2, …, such as the losses by epoch.
        """
        if files:
            self.log_files(run_id, files)
        self._log_batch(run_id, metrics=metrics, history=history, points=points, params=params, tags=tags)

    def log_files(self, run_id: str, files: Mapping[str, Content]) -> None:
        """Write artifacts of the run by their paths, all in one call.

        A single one appears whole or not at all; of several, a kill may leave some, and one of them cut off.
        """
        if not files:
            return
        with TemporaryDirectory() as folder:
            for path, content in files.items():
                local = Path(folder, _checked(path))
                local.parent.mkdir(parents=True, exist_ok=True)
                local.write_bytes(_bytes(content, path))
            if len(files) == 1:
                self.client.log_artifact(run_id, str(local), str(Path(path).parent).removeprefix(".") or None)
            else:
                self.client.log_artifacts(run_id, folder)
        for path in files:
            read_before.pop((self.uri, run_id, path))

    def log_record(self, run_id: str, record: Record, path: str) -> None:
        """Write ``record`` as JSON to the artifact ``path`` of the run."""
        self.log_files(run_id, {path: record})

    def log_file(self, run_id: str, content: bytes, path: str) -> None:
        """Write ``content`` to the artifact ``path`` of the run."""
        self.log_files(run_id, {path: content})

    def log_figure(self, run_id: str, figure: Figure, path: str) -> None:
        """Write ``figure`` to the artifact ``path``, whose suffix is the format."""
        self.log_files(run_id, {path: figure})

    def read_record(self, run_id: str, path: str, kind: type[AnyRecord]) -> AnyRecord | None:
        """The record in the artifact ``path`` of the run; None if it is not there or was not written to its end."""
        content = self._read(self._root(run_id), path)
        if content is None:
            return None
        try:
            return kind.model_validate_json(content)
        except ValidationError:
            return None

    def read_file(self, run_id: str, path: str) -> bytes:
        """The content of the artifact ``path`` of the run.

        :raises RegistryError: if it is not there.
        """
        content = self._read(self._root(run_id), path)
        if content is None:
            raise RegistryError(f"run {run_id} of {self.agent!r} has no artifact {path}")
        return content

    def log_table(self, run_id: str, table: Mapping[str, Sequence[object]], path: str) -> None:
        """Columns by name as a table that MLflow's pages show; ``path`` ends in ``.json``."""
        self.client.log_table(run_id, {name: list(column) for name, column in table.items()}, path)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log all ``metrics`` in one call."""
        self._log_batch(run_id, metrics=metrics, step=step or 0)

    def log_window(self, run_id: str, window: Window, rows: pd.DataFrame, context: str) -> None:
        """Name ``window`` as a dataset input: its table versions, columns, row count and a digest.

        :param rows: the window's rows, of which about a thousand are hashed.
        :param context: what the run used it for, such as ``"train"``.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        sample = rows.iloc[:: max(1, len(rows) // _DIGEST_ROWS)]
        source = {"path": str(home() / "knowledge" / self.agent), **window.model_dump(mode="json")}
        columns = [{"name": str(name), "type": _mlflow_type(rows[name])} for name in rows.columns]
        dataset = Dataset(
            name=window.name,
            digest=short_id(window.model_dump_json(), len(rows), sample.to_csv(index=False)),
            source_type="delta",
            source=json.dumps(source),
            schema=json.dumps({"mlflow_colspec": columns}),
            profile=json.dumps({"num_rows": len(rows), "num_elements": int(rows.size)}),
        )
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    # ----------------------------------------------------------------- inside

    def _refresh_runs(self, refresh_id: str) -> list[Any]:
        """Parent runs of this refresh, newest first."""
        wanted = f"tags.refresh_id = '{refresh_id}' and tags.role = 'refresh'"
        return list(self.client.search_runs([self.experiment_id], wanted, order_by=["attributes.start_time DESC"]))

    def _kill_others(self, refresh_id: str) -> None:
        wanted = f"tags.role = 'refresh' and tags.refresh_id != '{refresh_id}' and attributes.status = 'RUNNING'"
        for run in self.client.search_runs([self.experiment_id], wanted):
            self._kill_nested(run.info.run_id)
            self._kill(run.info.run_id, f"found running when refresh {refresh_id} began")

    def _kill_nested(self, run_id: str) -> None:
        wanted = f"tags.`{PARENT}` = '{run_id}' and attributes.status = 'RUNNING'"
        for nested in self.client.search_runs([self.experiment_id], wanted):
            self._kill(nested.info.run_id, "its refresh run was killed")

    def _kill(self, run_id: str, why: str) -> None:
        self._log_batch(run_id, tags={"killed": why})
        self.client.set_terminated(run_id, status="KILLED")

    def _log_batch(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        history: Sequence[Mapping[str, float]] = (),
        points: Points = (),
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        step: int = 0,
        model_id: str | None = None,
        own: Mapping[str, float] | None = None,
    ) -> None:
        """Metrics, params and tags in one call, as far as MLflow takes them in one.

        :param model_id: of the logged model that ``metrics`` are of, beside the run.
        :param own: metrics of the run alone.
        """
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        values = [Metric(name, value, now, step, model_id=model_id) for name, value in (metrics or {}).items()]
        values += [Metric(name, value, now, step) for name, value in (own or {}).items()]
        values += [
            Metric(name, value, now, epoch)
            for epoch, losses in enumerate(history, start=1)
            for name, value in losses.items()
        ]
        values += [
            Metric(name, value, int(when.timestamp() * 1000), at)
            for when, at, found in points
            for name, value in found.items()
        ]
        settings = [Param(name, value) for name, value in texts(params or {}).items()]
        marks = [RunTag(name, value) for name, value in texts(tags or {}).items()]
        while values or settings or marks:
            some, others = settings[:_PARAMS_PER_CALL], marks[:_TAGS_PER_CALL]
            most = _ENTRIES_PER_CALL - len(some) - len(others)
            self.client.log_batch(run_id, metrics=values[:most], params=some, tags=others)
            values, settings, marks = values[most:], settings[_PARAMS_PER_CALL:], marks[_TAGS_PER_CALL:]

    def _refresh_id(self, run_id: str) -> str:
        """Of the refresh whose parent run this is; empty for a run that is none."""
        return _refresh_ids.get((self.uri, run_id), lambda: self.run_tags(run_id).get("refresh_id", ""))

    # ----------------------------------------------------------------- inside: files

    def _root(self, run_id: str) -> str:
        """The address below which a run's artifacts lie."""
        return _roots.get((self.uri, run_id), lambda: str(self.client.get_run(run_id).info.artifact_uri))

    def _read(self, root: str, path: str) -> bytes | None:
        """The content of a file below the address ``root``; None if it is not there.

        A file that lies on this machine is read where it lies.
        """
        with TemporaryDirectory() as folder:
            try:
                return self._local(f"{root.rstrip('/')}/{path}", folder).read_bytes()
            except RegistryError as error:
                if self._is_absent(root, path, error):
                    return None
                raise

    def _local(self, address: str, folder: str) -> Path:
        """Where a file of MLflow's lies: itself, where it is on this machine, else a copy in ``folder``."""
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        into = None if _is_local(address) else folder
        try:
            return Path(download_artifacts(artifact_uri=address, dst_path=into, tracking_uri=self.uri))
        except (MlflowException, OSError) as error:
            raise RegistryError(f"{without_credentials(address)} cannot be read: {error}") from error

    def _is_absent(self, root: str, path: str, error: RegistryError) -> bool:
        """Whether a file could not be read because there is none."""
        if does_not_exist(error) or isinstance(error.__cause__, FileNotFoundError):
            return True
        if _is_local(root):
            return False
        from mlflow.artifacts import list_artifacts
        from mlflow.exceptions import MlflowException

        folder = f"{root.rstrip('/')}/{PurePosixPath(path).parent}".removesuffix("/.")
        try:
            there = list_artifacts(artifact_uri=folder, tracking_uri=self.uri)
        except (MlflowException, OSError):
            return False
        return not any(PurePosixPath(file.path).name == PurePosixPath(path).name for file in there)


def now() -> str:
    """The time, for a tag."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def texts(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _bytes(content: Content, path: str) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, Record):
        return content.model_dump_json(indent=1).encode()
    buffer = io.BytesIO()
    content.savefig(buffer, format=PurePosixPath(path).suffix.removeprefix("."))
    return buffer.getvalue()


def _checked(path: str) -> str:
    """:raises RegistryError: if ``path`` leads out of the run's artifacts."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise RegistryError(f"{path!r} is no path of an artifact: it leads out of the run's files")
    return path


def _is_local(address: str) -> bool:
    return address.startswith(("file:", "/"))


def _mlflow_type(column: pd.Series[Any]) -> str:
    kinds = {"f": "double", "i": "long", "u": "long", "b": "boolean", "M": "datetime"}
    return kinds.get(column.dtype.kind, "string")
