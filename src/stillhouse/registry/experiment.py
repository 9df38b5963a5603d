"""The MLflow experiment that holds the runs and logged models of one agent."""

from __future__ import annotations

from dataclasses import dataclass

from stillhouse.errors import RegistryError
from stillhouse.registry.connection import Client, artifact_location, connect, without_credentials

__all__ = ["Experiment", "open_experiment"]


@dataclass(frozen=True)
class Experiment:
    """An MLflow experiment and the client that reaches it."""

    name: str
    """The agent's name, or ``compress-<model>`` for a model that is compressed outside the loop."""
    experiment_id: str
    client: Client

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return self.client.uri


def open_experiment(name: str, tracking_uri: str | None = None) -> Experiment:
    """Connect to MLflow and open the experiment ``name``; create it if it does not exist.

    :param tracking_uri: by default ``MLFLOW_TRACKING_URI``, else SQLite under ``STILLHOUSE_HOME``.
    :raises RegistryError: if MLflow does not answer, or the experiment is deleted.
    """
    client = connect(tracking_uri)
    existing = client.get_experiment_by_name(name)
    if existing is None:
        try:
            created = client.create_experiment(name, artifact_location=artifact_location(client.uri))
            return Experiment(name, str(created), client)
        except RegistryError:
            existing = client.get_experiment_by_name(name)
            if existing is None:  # otherwise another process has created it meanwhile
                raise
    if existing.lifecycle_stage == "deleted":
        raise RegistryError(
            f"the experiment {name!r} at {without_credentials(client.uri)} is deleted; "
            f"restore it: mlflow experiments restore --experiment-id {existing.experiment_id}"
        )
    return Experiment(name, str(existing.experiment_id), client)
