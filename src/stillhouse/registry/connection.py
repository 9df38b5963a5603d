"""Connect to MLflow, or report within seconds that it does not answer."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from stillhouse.config import embedded_environment, home
from stillhouse.errors import RegistryError
from stillhouse.registry.relocation import relocate

__all__ = ["Client", "artifact_location", "connect", "does_not_exist", "process_default", "without_credentials"]

_TIMEOUT_S = 5.0  # time that a server has to answer
_DEFAULT_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

# With MLflow's defaults (7 retries of 120 s, doubling pauses) a run hangs for a quarter of an hour.
_NETWORK_ENVIRONMENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
_QUIET_ENVIRONMENT = {"MLFLOW_LOGGING_LEVEL": "WARNING", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}


class Client:
    """An ``MlflowClient`` whose errors are :class:`~stillhouse.errors.RegistryError` and name the server.

    :param file: the SQLite store. It must exist at each call, because SQLite would silently create an empty one.
    """

    def __init__(self, uri: str, file: Path | None = None) -> None:
        from mlflow import MlflowClient

        self.uri, self.file = uri, file
        self.mlflow = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        from mlflow.exceptions import MlflowException

        method = getattr(self.mlflow, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.file is not None and not self.file.exists():
                raise RegistryError(f"the MLflow store {self.file} is gone: put it back, or restore it from a backup")
            try:
                return method(*args, **kwargs)
            except MlflowException as error:
                message = _redacted(f"MLflow at {self.uri} could not do {name}: {error.message}")
                raise RegistryError(message) from error

        return call


def connect(tracking_uri: str | None = None) -> Client:
    """A client of ``tracking_uri``; by default of ``MLFLOW_TRACKING_URI``, else of the embedded SQLite store.

    :raises RegistryError: within about ten seconds, if nothing answers.
    """
    defaults = embedded_environment() | _NETWORK_ENVIRONMENT | _QUIET_ENVIRONMENT
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or defaults["MLFLOW_TRACKING_URI"]
    for name, value in defaults.items():
        # The embedded URI depends on STILLHOUSE_HOME, so it is passed on explicitly and never put into the environment.
        if name.startswith(("MLFLOW_", "DO_NOT_TRACK")) and name != "MLFLOW_TRACKING_URI":
            os.environ.setdefault(name, value)
    _check_port(uri)
    if uri.startswith("sqlite:///"):
        # A pooled connection would continue to use a file that was moved away or replaced by a backup.
        os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
        database = _sqlite_file(uri)
        with _lock(database):
            Client(uri).search_experiments(max_results=1)  # creates the tables
            client = Client(uri, database)
            if database.parent == home() / "mlflow" and (database.parent / "artifacts").is_dir():
                relocate(database, str(artifact_location(uri)))
            return client
    client = Client(uri)
    if uri.startswith(("http://", "https://")):
        _check_health(uri)
    return client


def artifact_location(uri: str) -> str | None:
    """The artifact folder of a new experiment as a URI; None leaves the choice to the server."""
    if uri.startswith("sqlite:///"):
        return (_sqlite_file(uri).parent / "artifacts").as_uri()
    if uri.startswith(("http://", "https://")):
        return None
    return (home() / "mlflow" / "artifacts").as_uri()


def does_not_exist(error: RegistryError) -> bool:
    """Whether MLflow answered that the entity does not exist, as opposed to another failure."""
    return getattr(error.__cause__, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


@contextlib.contextmanager
def process_default(uri: str) -> Iterator[None]:
    """Set MLflow's process-wide tracking URI to ``uri`` within the context.

    MLflow's SQL registry looks a LoggedModel up there, whatever the URI of the calling client (MLflow 3.17).
    """
    import mlflow

    name = "MLFLOW_TRACKING_URI"
    before = os.environ.get(name)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def without_credentials(uri: str) -> str:
    """``uri`` without user, password and query.

    >>> without_credentials("https://ann:secret@mlflow.example.org/path?key=secret")
    'https://mlflow.example.org/path'
    """
    parts = urlsplit(uri)
    if not parts.netloc:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _redacted(text: str) -> str:
    return re.sub(r"\w[\w+.-]*://[^\s'\"]+", lambda match: without_credentials(match[0]), text)


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve()


@contextlib.contextmanager
def _lock(database: Path) -> Iterator[None]:
    """Hold a file lock: two processes that create the same tables at once would fail."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_suffix(".lock")):
        yield


def _check_port(uri: str) -> None:
    """Connect to the server's port, if ``uri`` names a server."""
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    port = parts.port or {"http": 80, "https": 443, **_DEFAULT_PORTS}.get(scheme)
    if parts.hostname is None or port is None:
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=_TIMEOUT_S).close()
    except OSError as error:
        raise _no_answer(uri, error) from error


def _check_health(uri: str) -> None:
    """Send one request with the credentials, certificates and proxies that MLflow uses, without its retries.

    Any answer below 500 counts, also a refusal of the credentials: MLflow reports that itself at the first call.
    """
    import requests

    try:
        response = requests.get(
            f"{uri.rstrip('/')}/health",
            headers=_bearer_header(),
            auth=_basic_auth(),
            cert=_client_certificate(),
            verify=_trusted_certificates(),
            timeout=_TIMEOUT_S,
            allow_redirects=False,
            stream=True,
        )
    except (requests.RequestException, OSError, ValueError) as error:
        raise _no_answer(uri, error) from error
    response.close()
    if response.status_code >= 500:
        raise _no_answer(uri, f"status {response.status_code}")


def _bearer_header() -> dict[str, str]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {} if token is None or _basic_auth() is not None else {"Authorization": f"Bearer {token}"}


def _basic_auth() -> tuple[str, str] | None:
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return None if user is None else (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))


def _client_certificate() -> str | None:
    return os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH")


def _trusted_certificates() -> bool | str:
    """False: no check; True: those of the system or of ``REQUESTS_CA_BUNDLE``; otherwise a file or folder."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        return False
    return os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True


def _no_answer(uri: str, reason: object) -> RegistryError:
    return RegistryError(
        f"MLflow does not answer at {without_credentials(uri)} ({_redacted(str(reason))}). Start it there, correct "
        "MLFLOW_TRACKING_URI, or unset that variable to use the embedded store under STILLHOUSE_HOME"
    )
