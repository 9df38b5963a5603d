"""The window that a watch looks at: read once, and seen once as the champion sees it."""

from __future__ import annotations

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
from stillhouse.knowledge import KnowledgeBase, windows
from stillhouse.records import DataReport, Window
from stillhouse.registry import Registry

__all__ = ["WatchedWindow", "open_window", "window_of"]

Array = np.ndarray[Any, Any]

_MOST_OPEN = 2


class WatchedWindow:
    """The current window of an agent and the champion that is watched on it.

    :param window: pinned to table versions.
    :param champion: the champion when the watch began; None: there is none yet.
    """

    def __init__(self, agent: str, window: Window, champion: Champion | None, raw: pd.DataFrame | None = None) -> None:
        self.agent = agent
        self.window = window
        self.champion = champion
        self.settings: AgentConfig = config.load(agent)
        self._raw = raw

    @cached_property
    def base(self) -> KnowledgeBase:
        """The knowledge base by the actions of the agent file."""
        return KnowledgeBase(self.settings)

    @cached_property
    def champion_base(self) -> KnowledgeBase:
        """The knowledge base by the champion's actions, which may lack some that the agent file has by now."""
        if self.champion is None or self.champion.actions == self.settings.actions:
            return self.base
        return KnowledgeBase(self.settings, actions=self.champion.actions)

    @cached_property
    def registry(self) -> Registry:
        """The agent's registry."""
        return open_registry(self.agent)

    @property
    def raw(self) -> pd.DataFrame:
        """Every observation of the window as stored: what the data contract is asked about."""
        if self._raw is None:
            self._raw = self.base.read("observations", self.window)
        return self._raw

    @property
    def usual_psi(self) -> dict[str, float] | None:
        """The largest usual PSI of each column; None without a champion."""
        return dict(column_limits(self.champion.baseline.screens)) if self.champion else None

    def at(self, window: Window) -> WatchedWindow:
        """The same rows without those that were quarantined by the table version that ``window`` names."""
        if window == self.window:
            return self
        same = window.versions.get("observations") == self.window.versions.get("observations")
        seen = WatchedWindow(self.agent, window, self.champion, self._raw if same else None)
        seen.__dict__["base"] = self.base
        return seen

    @cached_property
    def observations(self) -> pd.DataFrame:
        """Sound observations, each once, by time and id; of a window with a sample, those that it draws."""
        if self.window.sample is not None:
            return self.base.read_observations(self.window)
        return self.base.drop_quarantined(self.raw, self.window)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The observations, with what is watched of texts as numbers beside them."""
        assert self.champion is not None
        columns = self.settings.observations.columns
        return texts.add_text_measures(self.observations, columns, self.champion.variant.columns)

    @cached_property
    def probabilities(self) -> Array:
        """The champion's probabilities for the rows, ``[n, K]``."""
        assert self.champion is not None
        return np.asarray(self.champion.variant.predict_proba(self.rows))

    @cached_property
    def profile(self) -> Profile:
        """The profile of the rows and of the champion's output, in the bins of its reference."""
        assert self.champion is not None
        return profile_window(self.rows, self.probabilities, self.champion.settings, like=self.champion.profile)

    @cached_property
    def labelled(self) -> pd.DataFrame:
        """Observations whose outcome was known by the window's end, by the champion's actions."""
        rows = self.champion_base.join_labels(self.observations, self.window, self.window.end)
        return rows[rows["outcome"] >= 0].reset_index(drop=True)

    def too_few(self, data: DataReport) -> bool:
        """Whether a sound window has too few rows to tell anything."""
        return not data.broken and data.rows - data.quarantined < self.settings.observations.min_rows


def open_window(agent: str, as_of: datetime | None) -> tuple[datetime, Window]:
    """The moment to speak of, and the current window as the agent file wants it, pinned to the tables of now.

    :param as_of: None: now, by the clock that the agent file names.
    :raises WindowError: see :func:`stillhouse.knowledge.windows.current`; where the clock is that of the newest
        observation, if there is none.
    """
    settings = config.load(agent)
    base = KnowledgeBase(settings)
    now = base.resolve_time(as_of)
    champion = load_champion(agent, settings)
    name = proved = None
    if champion and isinstance(settings.windows.current, SincePromotion):
        name, proved = str(champion.model), champion.baseline.as_of
    window = windows.current_window(base, now, name, proved)
    _keep(WatchedWindow(agent, window, champion))
    return now, window


def window_of(agent: str, window: Window) -> WatchedWindow:
    """The window that was opened in this process, as of the versions that ``window`` names; else opened anew."""
    opened = _OPEN.get(_key(agent, window))
    if opened is None:
        return _keep(WatchedWindow(agent, window, load_champion(agent)))
    return _keep(opened.at(window))


_OPEN: dict[tuple[Path, str, datetime, datetime], WatchedWindow] = {}


def _key(agent: str, window: Window) -> tuple[Path, str, datetime, datetime]:
    return config.home(), agent, window.start, window.end


def _keep(watched: WatchedWindow) -> WatchedWindow:
    key = _key(watched.agent, watched.window)
    _OPEN.pop(key, None)
    while len(_OPEN) >= _MOST_OPEN:
        _OPEN.pop(next(iter(_OPEN)))
    _OPEN[key] = watched
    return watched
