"""One parent run per refresh: opened, filled, and closed or taken up again after a crash."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from stillhouse.config import home
from stillhouse.errors import RegistryError
from stillhouse.records import Certificate, Examination, Record, Verdict, Window, short_id
from stillhouse.registry.connection import artifact_location, connect, without_credentials
from stillhouse.registry.entries import OpenedRefresh
from stillhouse.shown import markdown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["PARENT", "Runs", "now", "texts"]

AnyRecord = TypeVar("AnyRecord", bound=Record)

PARENT = "mlflow.parentRunId"
_METRICS_PER_CALL = 1000  # MLflow takes no more
_DIGEST_ROWS = 1000  # with the table versions, a digest need only tell frames apart


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
        verdicts = {run.info.run_id: self.read_record(run.info.run_id, "verdict.json", Verdict) for run in unfinished}
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
        return OpenedRefresh(run.info.run_id, None)

    def finished_refresh(self, refresh_id: str) -> Verdict | None:
        """The verdict of this refresh if one of its runs has finished."""
        finished = [run.info.run_id for run in self._refresh_runs(refresh_id) if run.info.status == "FINISHED"]
        verdicts = (self.read_record(run_id, "verdict.json", Verdict) for run_id in finished)
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
        self.log_record(run_id, verdict, "verdict.json")
        marks = {
            "verdict": verdict.verdict_id,
            "outcome": verdict.outcome,
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

    def log_curve(self, run_id: str, points: Sequence[tuple[datetime, int, Mapping[str, float]]]) -> None:
        """Log metrics at moments of the agent's life: time, step and the values, all in one call."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(when.timestamp() * 1000), step)
            for when, step, values in points
            for name, value in values.items()
        ]
        for first in range(0, len(metrics), _METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=metrics[first : first + _METRICS_PER_CALL])

    def run_tags(self, run_id: str) -> dict[str, str]:
        """Tags of a run."""
        return dict(self.client.get_run(run_id).data.tags)

    def tag(self, run_id: str, **tags: object) -> None:
        """Set tags of a run."""
        self._log_batch(run_id, tags=tags)

    # ----------------------------------------------------------------- what a run holds

    def log_record(self, run_id: str, record: Record, path: str) -> None:
        """Write ``record`` as JSON to the artifact ``path`` of the run."""
        self.client.log_text(run_id, record.model_dump_json(indent=1), path)

    def read_record(self, run_id: str, path: str, kind: type[AnyRecord]) -> AnyRecord | None:
        """The record in the artifact ``path`` of the run; None if it is not there or was not written to its end."""
        folder_in_run = str(Path(path).parent).removeprefix(".")
        if not any(file.path == path for file in self.client.list_artifacts(run_id, folder_in_run)):
            return None
        with TemporaryDirectory() as folder:
            local = Path(self.client.download_artifacts(run_id, path, folder))
            try:
                return kind.model_validate_json(local.read_bytes())
            except ValidationError:
                return None

    def log_file(self, run_id: str, content: bytes, path: str) -> None:
        """Write ``content`` to the artifact ``path`` of the run."""
        with TemporaryDirectory() as folder:
            local = Path(folder) / Path(path).name
            local.write_bytes(content)
            self.client.log_artifact(run_id, str(local), str(Path(path).parent).removeprefix(".") or None)

    def read_file(self, run_id: str, path: str) -> bytes:
        """The content of the artifact ``path`` of the run.

        :raises RegistryError: if it is not there.
        """
        with TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, path, folder)).read_bytes()

    def log_figure(self, run_id: str, figure: Figure, path: str) -> None:
        """Write ``figure`` to the artifact ``path``, whose suffix is the format."""
        self.client.log_figure(run_id, figure, path)

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
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        step: int = 0,
        model_id: str | None = None,
    ) -> None:
        """Metrics, params and tags in one call."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        self.client.log_batch(
            run_id,
            metrics=[Metric(name, value, now, step, model_id=model_id) for name, value in (metrics or {}).items()],
            params=[Param(name, value) for name, value in texts(params or {}).items()],
            tags=[RunTag(name, value) for name, value in texts(tags or {}).items()],
        )


def now() -> str:
    """The time, for a tag."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def texts(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _mlflow_type(column: pd.Series[Any]) -> str:
    kinds = {"f": "double", "i": "long", "u": "long", "b": "boolean", "M": "datetime"}
    return kinds.get(column.dtype.kind, "string")
