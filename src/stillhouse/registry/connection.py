"""Reaching MLflow, or saying within seconds that it does not answer."""

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

_PATIENCE = 5.0  # seconds that a server has to show that it is there
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

# MLflow's own defaults (7 retries, 120 s each, doubling pauses) keep a run hanging for a quarter of an hour.
_NETWORK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
_QUIET = {"MLFLOW_LOGGING_LEVEL": "WARNING", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}


class Client:
    """An ``MlflowClient`` whose errors are :class:`~stillhouse.errors.RegistryError` and name the server.

    :param file: of an SQLite store, which has to be there: SQLite would begin an empty one in its place.
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
    """A client of ``tracking_uri``, else of ``MLFLOW_TRACKING_URI``, else of the embedded SQLite store.

    :raises RegistryError: within about ten seconds, if nothing answers there.
    """
    defaults = embedded_environment() | _NETWORK | _QUIET
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or defaults["MLFLOW_TRACKING_URI"]
    for name, value in defaults.items():
        # The embedded URI depends on STILLHOUSE_HOME, so it is passed on explicitly and never left behind.
        if name.startswith(("MLFLOW_", "DO_NOT_TRACK")) and name != "MLFLOW_TRACKING_URI":
            os.environ.setdefault(name, value)
    _check_port(uri)
    if uri.startswith("sqlite:///"):
        # A connection that is kept would go on with a file that was moved away or replaced by a backup.
        os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
        database = _sqlite_file(uri)
        with _one_at_a_time(database):
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
    """Where a new experiment keeps its files; None leaves it to the server."""
    if uri.startswith("sqlite:///"):
        return (_sqlite_file(uri).parent / "artifacts").as_uri()
    if uri.startswith(("http://", "https://")):
        return None
    return (home() / "mlflow" / "artifacts").as_uri()


def does_not_exist(error: RegistryError) -> bool:
    """Whether MLflow answered that there is no such thing, rather than failing."""
    return getattr(error.__cause__, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


@contextlib.contextmanager
def process_default(uri: str) -> Iterator[None]:
    """Let ``uri`` be MLflow's process-wide tracking URI for a moment.

    The SQL registry looks a LoggedModel up there, whatever the URI of the client that asks (3.17).
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
    """``uri`` without user, password and query."""
    parts = urlsplit(uri)
    if not parts.netloc:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _redacted(text: str) -> str:
    return re.sub(r"\w[\w+.-]*://[^\s'\"]+", lambda found: without_credentials(found[0]), text)


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve()


@contextlib.contextmanager
def _one_at_a_time(database: Path) -> Iterator[None]:
    """Two processes that create the same tables at once would trip over one another."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_suffix(".lock")):
        yield


def _check_port(uri: str) -> None:
    """Connect to the server's port, if ``uri`` names a server."""
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    port = parts.port or {"http": 80, "https": 443, **_PORTS}.get(scheme)
    if parts.hostname is None or port is None:
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=_PATIENCE).close()
    except OSError as error:
        raise _no_answer(uri, error) from error


def _check_health(uri: str) -> None:
    """One request with the credentials, certificates and proxies that MLflow uses, and without its retries.

    Whatever answers is there, also where it wants other credentials: MLflow says so itself when it is asked.
    """
    import requests

    try:
        answer = requests.get(
            f"{uri.rstrip('/')}/health",
            headers=_bearer(),
            auth=_user(),
            cert=_client_certificate(),
            verify=_trusted_certificates(),
            timeout=_PATIENCE,
            allow_redirects=False,
            stream=True,
        )
    except (requests.RequestException, OSError, ValueError) as error:
        raise _no_answer(uri, error) from error
    answer.close()
    if answer.status_code >= 500:
        raise _no_answer(uri, f"status {answer.status_code}")


def _bearer() -> dict[str, str]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {} if token is None or _user() is not None else {"Authorization": f"Bearer {token}"}


def _user() -> tuple[str, str] | None:
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return None if user is None else (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))


def _client_certificate() -> str | None:
    return os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH")


def _trusted_certificates() -> bool | str:
    """False: any; True: those of the system, of ``REQUESTS_CA_BUNDLE``; else a file or folder of them."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        return False
    return os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True


def _no_answer(uri: str, why: object) -> RegistryError:
    return RegistryError(
        f"MLflow does not answer at {without_credentials(uri)} ({_redacted(str(why))}). Start it there, correct "
        "MLFLOW_TRACKING_URI, or unset that variable to use the embedded store under STILLHOUSE_HOME"
    )
