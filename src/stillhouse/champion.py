"""The champion of an agent and what belongs to it: its variant, baseline, teacher and profile.

A registered version never changes, so each is opened once per process and kept while it is in use.
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

__all__ = ["Champion", "champion_of", "load_version", "open_registry"]

_VERSIONS_KEPT = 4  # the champion, the one before, the first of a demo, and one that is compared


class Champion:
    """A registered variant with everything that it is compared with; each part is loaded when it is first asked for.

    :param model: the registered version.
    :param settings: the agent file, by which its teacher is read.
    """

    def __init__(self, model: ModelRef, settings: AgentConfig, registry: Registry) -> None:
        self.model = model
        self._settings = settings
        self._registry = registry

    @cached_property
    def variant(self) -> Variant:
        """The deployed model.

        :raises SignatureError: if its files are not as they were signed.
        """
        return Variant(self._registry.fetch(self.model))

    @property
    def actions(self) -> tuple[str, ...]:
        """The actions that it knows, which may be others than those of the agent file."""
        return tuple(self.variant.actions)

    @cached_property
    def settings(self) -> AgentConfig:
        """The agent file with the actions that the champion was made for."""
        known = self.actions
        return (
            self._settings if known == self._settings.actions else self._settings.model_copy(update={"actions": known})
        )

    @cached_property
    def baseline(self) -> Baseline:
        """What it was trained and proved on."""
        return self._registry.baseline(self.model)

    @cached_property
    def profile(self) -> Profile:
        """The profile of its training window and of its own output on it."""
        return Profile.from_bytes(self._registry.profile(self.model))

    def teacher_folder(self) -> Path:
        """Where the files of its teacher are: checked against what was signed at each call, fetched if they are gone.

        :raises SignatureError: if they are not as they were signed.
        """
        return self._registry.fetch(self.baseline.teacher)

    @cached_property
    def teacher(self) -> Ensemble:
        """The teachers that it was distilled from."""
        return ensemble.load(self.teacher_folder(), self.settings, ForeignModels())


def open_registry(agent: str) -> Registry:
    """The agent's registry, connected once per process and store; anew where the store's file was replaced."""
    uri, home = os.environ.get("MLFLOW_TRACKING_URI"), config.home()
    return _connected(agent, uri, home, _identity(uri or f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"))


def champion_of(agent: str, settings: AgentConfig | None = None) -> Champion | None:
    """The agent's champion; None before the first promotion."""
    registry = open_registry(agent)
    model = registry.champion()
    return None if model is None else _loaded(model, settings or config.load(agent), registry)


def load_version(agent: str, model: ModelRef) -> Champion:
    """A registered version with what belongs to it, champion or not."""
    return _loaded(model, config.load(agent), open_registry(agent))


@lru_cache(maxsize=16)
def _connected(agent: str, _uri: str | None, _home: Path, _file: tuple[int, int] | None) -> Registry:
    return Registry(agent)


def _identity(uri: str) -> tuple[int, int] | None:
    """Which file an SQLite store is; None for a server, and before the first use."""
    file = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if not uri.startswith("sqlite:///") or not file.exists():
        return None
    found = file.stat()
    return found.st_dev, found.st_ino


_LOADED: dict[tuple[ModelRef, str, int], Champion] = {}


def _loaded(model: ModelRef, settings: AgentConfig, registry: Registry) -> Champion:
    key = (model, settings.model_dump_json(), id(registry))
    if key not in _LOADED:
        while len(_LOADED) >= _VERSIONS_KEPT:
            _LOADED.pop(next(iter(_LOADED)))
        _LOADED[key] = Champion(model, settings, registry)
    _LOADED[key] = _LOADED.pop(key)  # the newest last
    return _LOADED[key]
