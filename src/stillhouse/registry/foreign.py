"""Models that others keep in MLflow: teachers of kind ``mlflow``, and classifiers to compress."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stillhouse.config import home
from stillhouse.errors import PartError, RegistryError
from stillhouse.files import tree_digest
from stillhouse.registry import reading
from stillhouse.registry.connection import Client, connect, process_default
from stillhouse.registry.downloads import bring
from stillhouse.registry.signatures import as_signed

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ForeignModel", "ForeignModels", "digest_of"]

_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
_NOT_ITS_OWN = frozenset({"registered_model_meta"})  # written by MLflow's download, otherwise for each address
_LARGEST_DESCRIPTION = 4 << 20  # bytes of an MLmodel


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

    def load(self, uri: str, digest: str | None = None, trusts_code: bool = False) -> Callable[[pd.DataFrame], Any]:
        """Rows to whatever the model gives; the rows are brought into the types of its signature.

        A model that is data alone (an ONNX graph, a torch program, a variant of an agent) is read by code of ours. Any
        other brings code or pickles, which MLflow runs when it loads them.

        :param digest: of its files, see :func:`digest_of`; they are what was looked at, or are refused.
        :param trusts_code: whether code of its author may run here. Only with ``digest``.
        :raises PartError: if it brings code and is not trusted, its files are others than ``digest`` says, or it cannot
            be loaded here.
        """
        try:
            _, _, folder = self._fetch(uri)
        except (RegistryError, OSError) as error:
            raise PartError(f"{uri} cannot be loaded from MLflow: {error}") from error
        described = _described(uri, folder)
        found = digest_of(folder)
        if digest is not None and digest != found:
            raise PartError(
                f"{uri} is not what was trusted: the digest of its files is {found}, and the agent file says {digest}. "
                f"Look at the model again before you write the new one down"
            )
        try:
            predict = reading.predictor(folder, described.flavors)
            if predict is None and not (trusts_code and digest):
                raise PartError(_untrusted(uri, found, reading.what_it_brings(folder, described.flavors)))
            if predict is None:
                predict = self._run_code(folder)
        except PartError:
            raise
        except Exception as error:  # whatever a stranger's model and its libraries may raise
            raise PartError(f"{uri} cannot be loaded from MLflow: {type(error).__name__}: {error}") from error
        schema, ready = described.get_input_schema(), predict
        variant = reading.variant_folder(folder, described.flavors)
        return ready if variant is not None else lambda rows: ready(as_signed(rows, schema))

    def _run_code(self, folder: Path) -> Callable[[Any], Any]:
        """MLflow's own way of loading a model, pickles and code of its author included."""
        import mlflow.pyfunc

        with process_default(self.client.uri), _pickle_allowed():
            predict: Callable[[Any], Any] = mlflow.pyfunc.load_model(str(folder)).predict
        return predict

    def fetch_classifier(self, uri: str) -> ForeignModel:
        """Download a torch program or an ONNX graph, once; it lies under ``STILLHOUSE_HOME/models``.

        :param uri: ``models:/name/3``, ``models:/name@alias``, ``models:/m-…`` or ``runs:/…/path``.
        :raises RegistryError: if MLflow does not answer, or has no such model.
        :raises PartError: if it is of another kind, or brings code or pickles, naming what there is and what to log
            instead. Nothing of it is run to find out.
        """
        if not re.match(r"(models|runs):/+\w", uri):
            raise RegistryError(
                f"{uri!r} is no model's address in MLflow; those are models:/name/3, models:/name@alias, models:/m-… "
                f"and runs:/…/path"
            )
        pinned = self.pin(uri)
        name, key, folder = self._fetch(pinned)
        return ForeignModel(pinned, name, key, _classifier(pinned, folder), _example(pinned, folder))

    def _fetch(self, pinned: str) -> tuple[str, str, Path]:
        """Name, key and files of a model, downloaded once."""
        name, key = self._name(pinned)
        folder = home() / "models" / f"{key}-whole"
        if not folder.exists():
            bring(lambda into: self._download(pinned, into), folder)
        return name, key, folder

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


def digest_of(folder: Path) -> str:
    """``sha256:…`` of all of a model's files, their names and contents."""
    for cache in sorted(folder.rglob("__pycache__")):  # Python's own copies: it makes them anew
        shutil.rmtree(cache, ignore_errors=True)
    return f"sha256:{tree_digest(folder, exclude=_NOT_ITS_OWN)}"


def _untrusted(uri: str, digest: str, brings: str) -> str:
    return (
        f"{uri} brings code or pickles ({brings or 'its flavours are neither ONNX nor an exported torch program'}), "
        f"which would run here with all your rights. Log it as an ONNX graph (mlflow.onnx.log_model) or an exported "
        f"torch program (mlflow.pytorch.log_model(…, serialization_format='pt2')). Or, if you have looked at its files "
        f"and trust whoever made them, write into the agent file: uri: {uri}, trusts_code: true, digest: {digest}"
    )


def _described(uri: str, folder: Path) -> Any:
    """What the model says about itself; nothing of it is imported.

    :raises PartError: if that cannot be read.
    """
    from mlflow.models import Model

    try:
        if (folder / "MLmodel").stat().st_size > _LARGEST_DESCRIPTION:
            raise ValueError("the file is too large to be one")
        return Model.load(str(folder))
    except Exception as error:  # of a stranger's file: YAML's and MLflow's errors have no base of their own
        raise PartError(f"the MLmodel of {uri} cannot be read: {type(error).__name__}: {error}") from error


def _classifier(uri: str, folder: Path) -> Path:
    """The file of a torch program or an ONNX graph.

    :raises PartError: if it is neither, or brings code or pickles.
    """
    flavors = _described(uri, folder).flavors
    if (variant := reading.variant_folder(folder, flavors)) is not None:
        agent = reading.agent_of(variant)
        raise PartError(
            f"{uri} is a variant of the agent {agent}, compressed already: compress its student, "
            f"models:/{agent}-student@champion"
        )
    if "onnx" not in flavors and "pytorch" not in flavors:
        raise PartError(
            f"{uri} has the flavours {', '.join(flavors)}, and only torch programs and ONNX graphs can be compressed: "
            f"log the model with mlflow.pytorch.log_model(…, serialization_format='pt2') or mlflow.onnx.log_model"
        )
    if brings := reading.what_it_brings(folder, flavors):
        pickled = (
            "onnx" not in flavors and not (folder / str(flavors["pytorch"].get("model_data")) / "model.pt2").exists()
        )
        what = "is a pickled torch model" if pickled else "brings code or pickles"
        raise PartError(
            f"{uri} {what} ({brings}), which may run anything when it is read: log the model alone, with "
            f"mlflow.pytorch.log_model(…, serialization_format='pt2') or mlflow.onnx.log_model"
        )
    try:
        return reading.onnx_file(folder, flavors) if "onnx" in flavors else reading.program_file(folder, flavors)
    except PartError as error:
        raise PartError(f"{uri}: {error}") from error


@contextmanager
def _pickle_allowed() -> Iterator[None]:
    """For a model that is trusted; whatever the environment says otherwise."""
    before = os.environ.get(_PICKLE)
    os.environ[_PICKLE] = "true"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_PICKLE, None)
        else:
            os.environ[_PICKLE] = before


def _example(uri: str, folder: Path) -> Any:
    """The input example; None where there is none that can be read."""
    from mlflow.exceptions import MlflowException

    described = _described(uri, folder)
    info = described.saved_input_example_info or {}
    with contextlib.suppress(MlflowException, OSError, ValueError, TypeError, KeyError, PartError):
        reading.inside(folder, info.get("artifact_path"))
        return described.load_input_example(str(folder))
    return None
