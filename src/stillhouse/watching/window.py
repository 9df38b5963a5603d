"""The current window of a watch: its rows, and the champion's probabilities and profile of them, each read once."""

from __future__ import annotations

import logging
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stillhouse import config
from stillhouse.champion import Champion, load_champion, open_registry
from stillhouse.config import AgentConfig, SincePromotion
from stillhouse.drift import texts
from stillhouse.drift.calibrate import column_limits
from stillhouse.drift.measure import profile_window
from stillhouse.drift.profile import Profile
from stillhouse.gateway.handing_over import hand_over
from stillhouse.knowledge import KnowledgeBase, windows
from stillhouse.records import DataReport, Window
from stillhouse.registry import PoolVersion, Registry

__all__ = ["WatchedWindow", "get_window", "open_window", "pin_labels"]

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

_MAX_OPEN_WINDOWS = 2


class WatchedWindow:
    """The current window of an agent and the champion that is watched on it.

    :param window: pinned to table versions.
    :param champion: the champion when the watch began; None if there is none yet.
    :param raw: the window's observations as stored, if they have been read already.
    :param settings: None: the agent file as it is now.
    """

    def __init__(
        self,
        agent: str,
        window: Window,
        champion: Champion | None,
        raw: pd.DataFrame | None = None,
        settings: AgentConfig | None = None,
    ) -> None:
        self.agent = agent
        self.window = window
        self.champion = champion
        self.settings: AgentConfig = settings or config.load(agent)
        self._raw = raw
        self.pool: Any = None
        """The pool as it was scored last, a :class:`~stillhouse.watching.pool.ScoredPool`."""

    @cached_property
    def base(self) -> KnowledgeBase:
        """The knowledge base with the actions of the agent file."""
        return KnowledgeBase(self.settings)

    @cached_property
    def champion_base(self) -> KnowledgeBase:
        """The knowledge base with the champion's actions, which may lack newer actions of the agent file."""
        if self.champion is None or self.champion.actions == self.settings.actions:
            return self.base
        return KnowledgeBase(self.settings, actions=self.champion.actions)

    @cached_property
    def registry(self) -> Registry:
        """The agent's registry."""
        return open_registry(self.agent)

    @cached_property
    def versions(self) -> list[PoolVersion]:
        """The versions that may be members of the pool."""
        return self.registry.pool_versions()

    @property
    def raw(self) -> pd.DataFrame:
        """All observations of the window as stored, for the check of the data contract."""
        if self._raw is None:
            self._raw = self.base.read("observations", self.window)
        return self._raw

    @property
    def psi_limits(self) -> dict[str, float] | None:
        """The largest PSI of each column without drift, as calibrated; None without a champion."""
        return dict(column_limits(self.champion.baseline.screens)) if self.champion else None

    def with_window(self, window: Window) -> WatchedWindow:
        """The same window at other table versions, without the rows quarantined there."""
        if window == self.window:
            return self
        same_rows = window.versions.get("observations") == self.window.versions.get("observations")
        watched = WatchedWindow(self.agent, window, self.champion, self._raw if same_rows else None)
        watched.__dict__["base"] = self.base  # the cached property
        watched.pool = self.pool
        if window.model_copy(update={"versions": window.versions | {"outcomes": 0}}) == self.window.model_copy(
            update={"versions": self.window.versions | {"outcomes": 0}}
        ):  # the same observations with more labels
            kept = ("observations", "rows", "probs", "profile")
            watched.__dict__.update({name: self.__dict__[name] for name in kept if name in self.__dict__})
        return watched

    @cached_property
    def observations(self) -> pd.DataFrame:
        """Observations that are not in quarantine, without duplicates, by time; or the window's sample of them."""
        if self.window.sample is not None:
            return self.base.read_observations(self.window)
        return self.base.drop_quarantined(self.raw, self.window)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The observations, with columns for the measures of their texts."""
        assert self.champion is not None
        columns = self.settings.observations.columns
        return texts.add_text_measures(self.observations, columns, self.champion.variant.columns)

    @cached_property
    def probs(self) -> Array:
        """The champion's probabilities for the rows, ``[n, K]``."""
        assert self.champion is not None
        return np.asarray(self.champion.variant.predict_proba(self.rows))

    @cached_property
    def profile(self) -> Profile:
        """The profile of the rows and of the champion's output, in the bins of the reference profile."""
        assert self.champion is not None
        return profile_window(self.rows, self.probs, self.champion.settings, like=self.champion.profile)

    @cached_property
    def labelled(self) -> pd.DataFrame:
        """Observations whose outcome was known at the window's end, as an index into the champion's actions."""
        rows = self.with_labels
        return rows[rows["outcome"] >= 0].reset_index(drop=True)

    @cached_property
    def with_labels(self) -> pd.DataFrame:
        """The observations; ``outcome`` is an index into the champion's actions, −1: not known at the window's end."""
        return self.champion_base.join_labels(self.observations, self.window, self.window.end)

    def has_too_few_rows(self, data: DataReport) -> bool:
        """Whether the window passes the data contract and has fewer than ``observations.min_rows`` rows."""
        return not data.broken and data.rows - data.quarantined < self.settings.observations.min_rows


def open_window(agent: str, as_of: datetime | None) -> tuple[datetime, Window]:
    """The time of the watch, and the current window by the agent file, pinned to the present table versions.

    What the front door has recorded by now comes to the knowledge base first.

    :param as_of: time of the watch; None: now, by the clock that the agent file names.
    :raises WindowError: see :func:`stillhouse.knowledge.windows.current_window`; also if the clock is the newest
        observation and there is none.
    """
    settings = config.load(agent)
    if settings.front_door is not None:
        hand_over(settings)
    base = KnowledgeBase(settings)
    now = base.resolve_time(as_of)
    champion = load_champion(agent, settings)
    champion_name = proved_at = None
    if champion and isinstance(settings.windows.current, SincePromotion):
        champion_name, proved_at = str(champion.model), champion.baseline.as_of
    window = windows.current_window(base, now, champion_name, proved_at)
    log.info("%s: %s, champion %s", agent, window, champion.model if champion else "none yet")
    _store(WatchedWindow(agent, window, champion))
    return now, window


def pin_labels(agent: str, data: DataReport) -> DataReport:
    """Without outcomes: the report with a window at the present labels, which the audit has added to.

    Otherwise quality would not count the answers of this watch. The report of an agent with outcomes stays as it is.
    """
    watched = get_window(agent, data.window)
    delta = None if watched.settings.outcomes is not None else watched.base.tables.open("outcomes")
    if delta is None:
        return data
    versions = data.window.versions | {"outcomes": delta.version()}
    return data.model_copy(update={"window": data.window.model_copy(update={"versions": versions})})


def get_window(agent: str, window: Window) -> WatchedWindow:
    """The window as opened earlier in this process, at the table versions of ``window``; opened if it was not."""
    opened = _OPEN_WINDOWS.get(_key(agent, window))
    if opened is None:
        return _store(WatchedWindow(agent, window, load_champion(agent)))
    return _store(opened.with_window(window))


_OPEN_WINDOWS: dict[tuple[Path, str, datetime, datetime], WatchedWindow] = {}


def _key(agent: str, window: Window) -> tuple[Path, str, datetime, datetime]:
    return config.home(), agent, window.start, window.end


def _store(watched: WatchedWindow) -> WatchedWindow:
    key = _key(watched.agent, watched.window)
    _OPEN_WINDOWS.pop(key, None)
    while len(_OPEN_WINDOWS) >= _MAX_OPEN_WINDOWS:
        _OPEN_WINDOWS.pop(next(iter(_OPEN_WINDOWS)))
    _OPEN_WINDOWS[key] = watched
    return watched
