"""Models that others keep in MLflow: teachers of kind ``mlflow``, and classifiers to compress."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stillhouse.config import home
from stillhouse.errors import PartError, RegistryError
from stillhouse.registry.connection import Client, connect, process_default
from stillhouse.registry.downloads import bring

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ForeignModel", "ForeignModels"]

_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"


class ForeignModel(NamedTuple):
    """A classifier in a file that holds no pickle.

    :param uri: its address, the same model for ever.
    :param name: of the registered model, or, where it is none, its id.
    :param key: names the model in a file system.
    :param file: ``model.pt2``, a torch program, or ``….onnx``.
    :param example: the input example that was logged with it: an array, arrays by input, or a table.
    """

    uri: str
    name: str
    key: str
    file: Path
    example: Any


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

    def fetch_classifier(self, uri: str) -> ForeignModel:
        """Download a torch program or an ONNX graph, once; it lies under ``STILLHOUSE_HOME/models``.

        :param uri: ``models:/name/3``, ``models:/name@alias``, ``models:/m-…`` or ``runs:/…/path``.
        :raises RegistryError: if MLflow does not answer, or has no such model.
        :raises PartError: if it is of another kind, or holds pickle, naming what there is and what to log instead.
        """
        if not re.match(r"(models|runs):/+\w", uri):
            raise RegistryError(
                f"{uri!r} is no model's address in MLflow; those are models:/name/3, models:/name@alias, models:/m-… "
                f"and runs:/…/path"
            )
        pinned = self.pin(uri)
        name, key = self._name(pinned)
        folder = home() / "models" / f"{key}-whole"
        if not folder.exists():
            bring(lambda into: self._download(pinned, into), folder)
        return ForeignModel(pinned, name, key, _classifier(pinned, folder), _example(folder))

    def _name(self, pinned: str) -> tuple[str, str]:
        """Name and key of a model."""
        version = re.fullmatch(r"models:/([^/@]+)/(\d+)", pinned)
        if version is not None:
            logged = re.fullmatch(r"models:/+(m-\w+)", self.client.get_model_version(version[1], version[2]).source)
            return version[1], logged[1] if logged else f"{_plain(version[1])}-{version[2]}"
        key = _plain(pinned.partition(":")[2])
        return key, key

    def _download(self, uri: str, into: str) -> Path:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        with process_default(self.client.uri):
            try:
                found = Path(download_artifacts(artifact_uri=uri, dst_path=into, tracking_uri=self.client.uri))
            except (MlflowException, OSError) as error:
                raise RegistryError(f"{uri} cannot be fetched from MLflow: {error}") from error
        if not (found / "MLmodel").is_file():
            raise RegistryError(f"{uri} is no MLflow model: there is no MLmodel among its files")
        return found


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")


def _classifier(uri: str, folder: Path) -> Path:
    """The file of a torch program or an ONNX graph.

    :raises PartError: if it is neither.
    """
    from mlflow.models import Model

    flavors: Mapping[str, Any] = Model.load(str(folder)).flavors
    if "onnx" in flavors:
        return folder / str(flavors["onnx"]["data"])
    if "pytorch" in flavors:
        return _program(uri, folder, folder / str(flavors["pytorch"]["model_data"]) / "model.pt2")
    variant = flavors.get("python_function", {}).get("artifacts", {}).get("variant")
    if variant is not None:
        manifest = json.loads((folder / variant["path"] / "manifest.json").read_text(encoding="utf-8"))
        raise PartError(
            f"{uri} is a variant of the agent {manifest['agent']}, compressed already: compress its student, "
            f"models:/{manifest['agent']}-student@champion"
        )
    raise PartError(
        f"{uri} has the flavours {', '.join(flavors)}, and only torch programs and ONNX graphs can be compressed: log "
        f"the model with mlflow.pytorch.log_model(…, serialization_format='pt2') or mlflow.onnx.log_model"
    )


def _program(uri: str, folder: Path, file: Path) -> Path:
    """A torch program's file, after MLflow has looked for pickle in it."""
    import mlflow.pytorch

    if not file.is_file():
        raise PartError(
            f"{uri} is a pickled torch model, and pickle may run anything when it is read: log it with "
            f"mlflow.pytorch.log_model(…, serialization_format='pt2')"
        )
    with _without_pickle():
        try:
            mlflow.pytorch.load_model(str(folder))
        except Exception as error:  # of a stranger's file: torch's errors have no base of their own
            raise PartError(f"{uri} cannot be loaded from MLflow: {type(error).__name__}: {error}") from error
    return file


@contextmanager
def _without_pickle() -> Iterator[None]:
    """Whatever the user's environment allows."""
    before = os.environ.get(_PICKLE)
    os.environ[_PICKLE] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PICKLE]
        else:
            os.environ[_PICKLE] = before


def _example(folder: Path) -> Any:
    """The input example; None where there is none that can be read."""
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    try:
        return Model.load(str(folder)).load_input_example(str(folder))
    except (MlflowException, OSError, ValueError, TypeError):
        return None
