"""The champion of an agent with its variant, baseline, teacher and profile.

A registered version never changes, so a process loads each version once and caches the latest.
"""

from __future__ import annotations

import os
from functools import cached_property, lru_cache
from pathlib import Path

from stillhouse import config
from stillhouse.config import AgentConfig
from stillhouse.drift.profile import Profile
from stillhouse.records import Baseline, ModelRef
from stillhouse.registry import Registry
from stillhouse.registry.foreign import ForeignModels
from stillhouse.teachers import ensemble
from stillhouse.teachers.ensemble import Ensemble
from stillhouse.variant import Variant

__all__ = ["Champion", "load_champion", "load_version", "open_registry"]

_MAX_CACHED_VERSIONS = 40  # the largest pool, and some to compare


class Champion:
    """A registered variant, its baseline, teacher and profile; each part is loaded at the first access.

    :param model: the registered version.
    :param settings: the agent file, which names the classes of its teachers.
    """

    def __init__(self, model: ModelRef, settings: AgentConfig, registry: Registry) -> None:
        self.model = model
        self._settings = settings
        self._registry = registry

    @property
    def folder(self) -> Path:
        """The folder of the deployed model: each call verifies its files and downloads missing or damaged ones.

        :raises SignatureError: if its files differ from the signed ones.
        """
        return self._registry.models.fetch(self.model)

    @cached_property
    def variant(self) -> Variant:
        """The deployed model.

        :raises SignatureError: if its files differ from the signed ones.
        """
        return Variant(self.folder)

    @property
    def actions(self) -> tuple[str, ...]:
        """The actions that the variant was trained on, which may differ from those of the agent file."""
        return tuple(self.variant.actions)

    @cached_property
    def settings(self) -> AgentConfig:
        """The agent file with the champion's own actions."""
        if self.actions == self._settings.actions:
            return self._settings
        return self._settings.model_copy(update={"actions": self.actions})

    @cached_property
    def baseline(self) -> Baseline:
        """The windows that it was trained and tested on, and the figures that watches compare with."""
        return self._registry.baseline(self.model)

    @cached_property
    def profile(self) -> Profile:
        """The profile of its training window and of its output on it."""
        return Profile.from_bytes(self._registry.profile(self.model))

    def teacher_folder(self) -> Path:
        """The folder with the files of its teacher: each call verifies them and downloads missing or damaged ones.

        :raises SignatureError: if they differ from the signed ones.
        """
        return self._registry.models.fetch(self.baseline.teacher)

    @cached_property
    def teacher(self) -> Ensemble:
        """The teachers that it was distilled from."""
        return ensemble.load(self.teacher_folder(), self.settings, ForeignModels())


def open_registry(agent: str) -> Registry:
    """The agent's registry: one connection per process and store, and a new one if the store's file was replaced."""
    uri, home = os.environ.get("MLFLOW_TRACKING_URI"), config.home()
    return _connect(agent, uri, home, _file_identity(uri or f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"))


def load_champion(agent: str, settings: AgentConfig | None = None) -> Champion | None:
    """The agent's champion; None before the first promotion."""
    registry = open_registry(agent)
    model = registry.champion()
    return None if model is None else _load(model, settings or config.load(agent), registry)


def load_version(agent: str, model: ModelRef) -> Champion:
    """A registered version as a :class:`Champion`, whether it is champion or not."""
    return _load(model, config.load(agent), open_registry(agent))


@lru_cache(maxsize=16)
def _connect(agent: str, _uri: str | None, _home: Path, _identity: tuple[int, int] | None) -> Registry:
    return Registry(agent)


def _file_identity(uri: str) -> tuple[int, int] | None:
    """Device and inode of an SQLite store; None for a server, and before the first use."""
    file = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if not uri.startswith("sqlite:///") or not file.exists():
        return None
    status = file.stat()
    return status.st_dev, status.st_ino


_CACHE: dict[tuple[ModelRef, str, int], Champion] = {}


def _load(model: ModelRef, settings: AgentConfig, registry: Registry) -> Champion:
    key = (model, settings.model_dump_json(), id(registry))
    if key not in _CACHE:
        while len(_CACHE) >= _MAX_CACHED_VERSIONS:
            _CACHE.pop(next(iter(_CACHE)))
        _CACHE[key] = Champion(model, settings, registry)
    _CACHE[key] = _CACHE.pop(key)  # the most recently used is last
    return _CACHE[key]
