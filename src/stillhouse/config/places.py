"""Where things are kept: the home, the folder of agent files, and the embedded defaults."""

from __future__ import annotations

import os
from pathlib import Path

from stillhouse.config.store import open_store
from stillhouse.errors import ConfigError

__all__ = ["agents_folder", "embedded_environment", "home", "unfit_in_path", "use_embedded_defaults"]


def home() -> Path:
    """The folder that everything is kept in: ``STILLHOUSE_HOME``, by default ``./.stillhouse``.

    :raises ConfigError: if it cannot be a folder that SQLite, MLflow, Prefect and Delta Lake all find again.
    :raises StoreError: if it holds what this version cannot read; see :mod:`stillhouse.config.store`.
    """
    folder = _home()
    open_store(folder)
    return folder


def _home() -> Path:
    """Where :func:`home` is to be; nothing is made or looked at there."""
    folder = _folder("STILLHOUSE_HOME", ".stillhouse")
    if strange := unfit_in_path(folder):
        raise ConfigError(
            f"STILLHOUSE_HOME is the folder {str(folder)!r}, and Delta Lake, SQLite and MLflow do not all find a path "
            f"again that has {', '.join(map(repr, strange))} in it: name another folder"
        )
    return folder


def agents_folder() -> Path:
    """The folder of reviewed agent files: ``STILLHOUSE_AGENTS``, by default ``./agents``.

    :raises ConfigError: if it cannot be a folder.
    """
    return _folder("STILLHOUSE_AGENTS", "agents")


def _folder(variable: str, otherwise: str) -> Path:
    given = os.environ.get(variable) or otherwise
    try:
        folder = Path(given).resolve()
        str(folder).encode("utf-8")
        there = next(each for each in (folder, *folder.parents) if each.exists())
        if not there.is_dir():
            raise ConfigError(f"{variable} names {given!r}, and {str(there)!r} is a file: name a folder")
    except (OSError, RuntimeError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "its name is no UTF-8"
        raise ConfigError(f"{variable} names {given!r}, which cannot be a folder ({reason}): name another") from error
    return folder


def unfit_in_path(path: Path) -> list[str]:
    """Characters of ``path`` that end an address (``sqlite:///…?…``), are decoded in one, or Delta Lake refuses."""
    return sorted({one for one in str(path) if one in "?%[]|^`\\" or not one.isprintable()})


def embedded_environment() -> dict[str, str]:
    """Environment of the embedded default: SQLite under :func:`home`, telemetry off, no pickle.

    Only defaults: a caller sets what is not yet set (``os.environ.setdefault``).
    """
    store = _home()
    environment = {
        "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_TRACKING_URI": f"sqlite:///{store / 'mlflow' / 'mlflow.db'}",
        "GX_ANALYTICS_ENABLED": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        # OpenMP threads that wait by spinning take the core from the thread they wait for, once cores are shared:
        # fits that take 4 s then take 80.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "ARROW_DEFAULT_MEMORY_POOL": "system",  # others keep what was freed, beside what the rest of the process keeps
    }
    if not (Path.home() / ".prefect" / "profiles.toml").exists():  # a user's own profile wins
        environment["PREFECT_HOME"] = str(store / "prefect")
    return environment


def use_embedded_defaults() -> None:
    """Set what is unset of :func:`embedded_environment` and make its folder; before Prefect or MLflow is imported."""
    for name, value in embedded_environment().items():
        os.environ.setdefault(name, value)
    Path(os.environ.get("PREFECT_HOME", home())).mkdir(parents=True, exist_ok=True)  # Prefect needs it to be there
