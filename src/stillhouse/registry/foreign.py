"""Models that others keep in MLflow, for teachers of kind ``mlflow``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stillhouse.errors import PartError
from stillhouse.registry.connection import Client, connect, process_default

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ForeignModels"]


class ForeignModels:
    """Meets :class:`stillhouse.parts.ModelStore`; connects when it is first asked.

    :param tracking_uri: by default ``MLFLOW_TRACKING_URI``, else SQLite under ``STILLHOUSE_HOME``.
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        self._uri = tracking_uri
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = connect(self._uri)
        return self._client

    def pin(self, uri: str) -> str:
        """``models:/name@alias`` as ``models:/name/7``; every other address means the same model for ever.

        :raises RegistryError: if MLflow does not answer, or has no such model or alias.
        """
        alias = re.fullmatch(r"models:/([^/@]+)@(.+)", uri)
        if alias is None:
            return uri
        version = self.client.get_model_version_by_alias(alias[1], alias[2]).version
        return f"models:/{alias[1]}/{version}"

    def load(self, uri: str) -> Callable[[pd.DataFrame], Any]:
        """The pyfunc's ``predict``.

        :raises PartError: if the model cannot be loaded here, for want of a package or of the model.
        """
        import mlflow.pyfunc

        with process_default(self.client.uri):
            try:
                predict: Callable[[pd.DataFrame], Any] = mlflow.pyfunc.load_model(uri).predict
            except Exception as error:
                raise PartError(f"{uri} cannot be loaded from MLflow: {type(error).__name__}: {error}") from error
        return predict
