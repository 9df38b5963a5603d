"""Traces of an MLflow experiment, written to a file of JSON lines."""

from __future__ import annotations

from pathlib import Path

from stillhouse.errors import RegistryError
from stillhouse.registry.connection import connect, without_credentials

__all__ = ["write_traces"]

_TRACES_PER_CALL = 100


def write_traces(experiment: str, path: Path, tracking_uri: str | None = None) -> int:
    """Write all traces of an experiment with their assessments to ``path``, oldest first; return their number.

    :param experiment: its name or its id.
    :param tracking_uri: by default ``MLFLOW_TRACKING_URI``, else the embedded store.
    :raises RegistryError: if MLflow does not answer, or there is no such experiment.
    """
    client = connect(tracking_uri)
    found = client.get_experiment_by_name(experiment)
    if found is None and experiment.isdigit():
        found = client.get_experiment(experiment)
    if found is None:
        raise RegistryError(
            f"there is no experiment {experiment!r} at {without_credentials(client.uri)}, and no such file: name one, "
            "or set MLFLOW_TRACKING_URI"
        )
    token, count = None, 0
    with path.open("w", encoding="utf-8") as file:
        while True:
            page = client.search_traces(
                locations=[found.experiment_id],
                max_results=_TRACES_PER_CALL,
                order_by=["timestamp_ms ASC"],
                page_token=token,
            )
            for trace in page:
                file.write(trace.to_json() + "\n")
                count += 1
            token = page.token
            if not token:
                return count
