"""Models in MLflow that other projects logged: teachers of kind ``mlflow``, and classifiers to compress."""

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
from stillhouse.registry import formats
from stillhouse.registry.connection import Client, connect, process_default
from stillhouse.registry.downloads import download_once
from stillhouse.registry.schemas import cast_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ForeignModel", "ForeignModels", "digest_of"]

_ALLOW_PICKLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
_NOT_HASHED = frozenset({"registered_model_meta"})  # MLflow's download writes it; it depends on the address
_MAX_DESCRIPTION_BYTES = 4 << 20  # of an MLmodel file


class ForeignModel(NamedTuple):
    """A classifier in a file that holds no pickle.

    :param uri: its permanent address.
    :param name: name of the registered model; of an unregistered model its id.
    :param key: a name for folders and files.
    :param file: ``model.pt2`` (a torch program) or ``….onnx``.
    :param example: the input example logged with the model: an array, arrays by input, a table, or None.
    """

    uri: str
    name: str
    key: str
    file: Path
    example: Any


class ForeignModels:
    """Implements :class:`stillhouse.parts.ModelStore`; connects to MLflow at the first use.

    :param tracking_uri: by default ``MLFLOW_TRACKING_URI``, else SQLite under ``STILLHOUSE_HOME``.
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        self._uri = tracking_uri
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The MLflow client."""
        if self._client is None:
            self._client = connect(self._uri)
        return self._client

    def pin(self, uri: str) -> str:
        """``models:/name@alias`` as ``models:/name/7``; other addresses are permanent and returned unchanged.

        :raises RegistryError: if MLflow does not answer, or the model or alias does not exist.
        """
        alias = re.fullmatch(r"models:/([^/@]+)@(.+)", uri)
        if alias is None:
            return uri
        version = self.client.get_model_version_by_alias(alias[1], alias[2]).version
        return f"models:/{alias[1]}/{version}"

    def load(self, uri: str, digest: str | None = None, trusts_code: bool = False) -> Callable[[pd.DataFrame], Any]:
        """A function from rows to the model's output; it casts the rows to the types of the model's signature.

        A model that holds data only (an ONNX graph, a torch program, a variant of an agent) is read by stillhouse. Any
        other model brings code or pickles, which MLflow runs when it loads them.

        :param digest: expected digest of the files, see :func:`digest_of`; other files are refused.
        :param trusts_code: whether code of the model's author may run here. Requires ``digest``.
        :raises PartError: if the model brings code and is not trusted, the files do not match ``digest``, or it cannot
            be loaded.
        """
        try:
            _, _, folder = self._fetch(uri)
        except (RegistryError, OSError) as error:
            raise PartError(f"{uri} cannot be loaded from MLflow: {error}") from error
        description = _read_description(uri, folder)
        actual_digest = digest_of(folder)
        if digest is not None and digest != actual_digest:
            raise PartError(
                f"{uri} is not what was trusted: the digest of its files is {actual_digest}, and the agent file says "
                f"{digest}. Look at the model again before you write the new one down"
            )
        try:
            predict = formats.load_predictor(folder, description.flavors)
            if predict is None and not (trusts_code and digest):
                code = formats.list_code(folder, description.flavors)
                raise PartError(_untrusted_error(uri, actual_digest, code))
            if predict is None:
                predict = self._run_code(folder)
        except PartError:
            raise
        except Exception as error:  # a foreign model and its libraries may raise anything
            raise PartError(f"{uri} cannot be loaded from MLflow: {type(error).__name__}: {error}") from error
        schema, predict_cast = description.get_input_schema(), predict
        variant = formats.find_variant(folder, description.flavors)
        return predict_cast if variant is not None else lambda rows: predict_cast(cast_rows(rows, schema))

    def _run_code(self, folder: Path) -> Callable[[Any], Any]:
        """Load a model with MLflow, which runs pickles and code of its author."""
        import mlflow.pyfunc

        with process_default(self.client.uri), _allow_pickle():
            predict: Callable[[Any], Any] = mlflow.pyfunc.load_model(str(folder)).predict
        return predict

    def fetch_classifier(self, uri: str) -> ForeignModel:
        """Download a torch program or an ONNX graph to ``STILLHOUSE_HOME/models``, once.

        :param uri: ``models:/name/3``, ``models:/name@alias``, ``models:/m-…`` or ``runs:/…/path``.
        :raises RegistryError: if MLflow does not answer, or the model does not exist.
        :raises PartError: if the model has another format, or brings code or pickles. The message names them and the
            format to log instead. The check runs no code of the model.
        """
        if not re.match(r"(models|runs):/+\w", uri):
            raise RegistryError(
                f"{uri!r} is no model's address in MLflow; those are models:/name/3, models:/name@alias, models:/m-… "
                f"and runs:/…/path"
            )
        pinned = self.pin(uri)
        name, key, folder = self._fetch(pinned)
        return ForeignModel(pinned, name, key, _find_classifier(pinned, folder), _load_example(pinned, folder))

    def _fetch(self, pinned: str) -> tuple[str, str, Path]:
        """Name, key and folder of a model, downloaded once."""
        name, key = self._name_and_key(pinned)
        folder = home() / "models" / f"{key}-whole"
        if not folder.exists():
            download_once(lambda target: self._download(pinned, target), folder)
        return name, key, folder

    def _name_and_key(self, pinned: str) -> tuple[str, str]:
        version = re.fullmatch(r"models:/([^/@]+)/(\d+)", pinned)
        if version is not None:
            logged = re.fullmatch(r"models:/+(m-\w+)", self.client.get_model_version(version[1], version[2]).source)
            return version[1], logged[1] if logged else f"{_file_name(version[1])}-{version[2]}"
        key = _file_name(pinned.partition(":")[2])
        return key, key

    def _download(self, uri: str, target: str) -> Path:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        with process_default(self.client.uri):
            try:
                folder = Path(download_artifacts(artifact_uri=uri, dst_path=target, tracking_uri=self.client.uri))
            except (MlflowException, OSError) as error:
                raise RegistryError(f"{uri} cannot be fetched from MLflow: {error}") from error
        if not (folder / "MLmodel").is_file():
            raise RegistryError(f"{uri} is no MLflow model: there is no MLmodel among its files")
        return folder


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")


def digest_of(folder: Path) -> str:
    """``sha256:…`` of the names and contents of all files of a model."""
    for cache in sorted(folder.rglob("__pycache__")):  # byte code that Python wrote
        shutil.rmtree(cache, ignore_errors=True)
    return f"sha256:{tree_digest(folder, exclude=_NOT_HASHED)}"


def _untrusted_error(uri: str, digest: str, code: str) -> str:
    return (
        f"{uri} brings code or pickles ({code or 'its flavours are neither ONNX nor an exported torch program'}), "
        f"which would run here with all your rights. Log it as an ONNX graph (mlflow.onnx.log_model) or an exported "
        f"torch program (mlflow.pytorch.log_model(…, serialization_format='pt2')). Or, if you have looked at its files "
        f"and trust whoever made them, write into the agent file: uri: {uri}, trusts_code: true, digest: {digest}"
    )


def _read_description(uri: str, folder: Path) -> Any:
    """The model's ``MLmodel`` file; reading it imports no code of the model.

    :raises PartError: if it cannot be read.
    """
    from mlflow.models import Model

    try:
        if (folder / "MLmodel").stat().st_size > _MAX_DESCRIPTION_BYTES:
            raise ValueError("the file is too large to be one")
        return Model.load(str(folder))
    except Exception as error:  # errors of YAML and MLflow on an unknown file share no base class
        raise PartError(f"the MLmodel of {uri} cannot be read: {type(error).__name__}: {error}") from error


def _find_classifier(uri: str, folder: Path) -> Path:
    """The file of a torch program or an ONNX graph.

    :raises PartError: if the model is neither, or brings code or pickles.
    """
    flavors = _read_description(uri, folder).flavors
    if (variant := formats.find_variant(folder, flavors)) is not None:
        agent = formats.read_agent_name(variant)
        raise PartError(
            f"{uri} is a variant of the agent {agent}, compressed already: compress its student, "
            f"models:/{agent}-student@champion"
        )
    if "onnx" not in flavors and "pytorch" not in flavors:
        raise PartError(
            f"{uri} has the flavours {', '.join(flavors)}, and only torch programs and ONNX graphs can be compressed: "
            f"log the model with mlflow.pytorch.log_model(…, serialization_format='pt2') or mlflow.onnx.log_model"
        )
    if code := formats.list_code(folder, flavors):
        pickled = (
            "onnx" not in flavors and not (folder / str(flavors["pytorch"].get("model_data")) / "model.pt2").exists()
        )
        problem = "is a pickled torch model" if pickled else "brings code or pickles"
        raise PartError(
            f"{uri} {problem} ({code}), which may run anything when it is read: log the model alone, with "
            f"mlflow.pytorch.log_model(…, serialization_format='pt2') or mlflow.onnx.log_model"
        )
    try:
        return formats.find_onnx(folder, flavors) if "onnx" in flavors else formats.find_program(folder, flavors)
    except PartError as error:
        raise PartError(f"{uri}: {error}") from error


@contextmanager
def _allow_pickle() -> Iterator[None]:
    """Let MLflow load pickles within the context, for a trusted model."""
    before = os.environ.get(_ALLOW_PICKLE)
    os.environ[_ALLOW_PICKLE] = "true"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_ALLOW_PICKLE, None)
        else:
            os.environ[_ALLOW_PICKLE] = before


def _load_example(uri: str, folder: Path) -> Any:
    """The input example; None if there is none or it cannot be read."""
    from mlflow.exceptions import MlflowException

    description = _read_description(uri, folder)
    info = description.saved_input_example_info or {}
    with contextlib.suppress(MlflowException, OSError, ValueError, TypeError, KeyError, PartError):
        formats.resolve_file(folder, info.get("artifact_path"))
        return description.load_input_example(str(folder))
    return None
