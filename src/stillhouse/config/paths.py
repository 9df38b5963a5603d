"""Folders and environment variables: the home, the folder of agent files, and the embedded defaults."""

from __future__ import annotations

import os
from pathlib import Path

from stillhouse.config.store import open_store
from stillhouse.errors import ConfigError

__all__ = ["agents_folder", "embedded_environment", "home", "unsafe_path_characters", "use_embedded_defaults"]


def home() -> Path:
    """The folder of all stored data: ``STILLHOUSE_HOME``, by default ``./.stillhouse``.

    :raises ConfigError: if it cannot be a folder whose path SQLite, MLflow, Prefect and Delta Lake all accept.
    :raises StoreError: if this version cannot read its content; see :mod:`stillhouse.config.store`.
    """
    folder = _home_path()
    open_store(folder)
    return folder


def _home_path() -> Path:
    """The path of :func:`home`; the folder is neither created nor read."""
    folder = _folder_from("STILLHOUSE_HOME", ".stillhouse")
    if characters := unsafe_path_characters(folder):
        raise ConfigError(
            f"STILLHOUSE_HOME is the folder {str(folder)!r}; Delta Lake, SQLite and MLflow do not all accept a path "
            f"that contains {', '.join(map(repr, characters))}: name another folder"
        )
    return folder


def agents_folder() -> Path:
    """The folder of reviewed agent files: ``STILLHOUSE_AGENTS``, by default ``./agents``.

    :raises ConfigError: if it cannot be a folder.
    """
    return _folder_from("STILLHOUSE_AGENTS", "agents")


def _folder_from(variable: str, default: str) -> Path:
    """The folder that an environment variable names."""
    value = os.environ.get(variable) or default
    try:
        folder = Path(value).resolve()
        str(folder).encode("utf-8")
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not existing.is_dir():
            raise ConfigError(f"{variable} is {value!r}, and {str(existing)!r} is a file: name a folder")
    except (OSError, RuntimeError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "its name is not UTF-8"
        raise ConfigError(f"{variable} is {value!r}, which cannot be a folder ({reason}): name another") from error
    return folder


def unsafe_path_characters(path: Path) -> list[str]:
    """The characters of ``path`` that a URL would end at or decode (``sqlite:///…?…``), or that Delta Lake refuses.

    >>> unsafe_path_characters(Path("/data/50% [new]"))
    ['%', '[', ']']
    """
    return sorted({character for character in str(path) if character in "?%[]|^`\\" or not character.isprintable()})


def embedded_environment() -> dict[str, str]:
    """Environment variables of the embedded setup: SQLite under :func:`home`, no telemetry, no pickle.

    They are defaults: set those that are not set yet (``os.environ.setdefault``).
    """
    folder = _home_path()
    environment = {
        "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}",
        "GX_ANALYTICS_ENABLED": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        # OpenMP threads that wait actively take the core from the thread they wait for when cores are shared:
        # a fit of 4 s then takes 80 s.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "ARROW_DEFAULT_MEMORY_POOL": "system",  # Arrow's own pools do not return freed memory to the process
    }
    if not (Path.home() / ".prefect" / "profiles.toml").exists():  # a user's own Prefect profile takes precedence
        environment["PREFECT_HOME"] = str(folder / "prefect")
    return environment


def use_embedded_defaults() -> None:
    """Set the unset variables of :func:`embedded_environment`; call it before Prefect or MLflow is imported."""
    for name, value in embedded_environment().items():
        os.environ.setdefault(name, value)
    Path(os.environ.get("PREFECT_HOME", home())).mkdir(parents=True, exist_ok=True)  # Prefect requires the folder
