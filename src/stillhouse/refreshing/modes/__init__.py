"""The modes of a refresh, one per file. A new mode needs a file here and a line in :data:`MODES`.

>>> MODES["update"].fallback
'redistil'
"""

from __future__ import annotations

import logging

from stillhouse.errors import StillhouseError
from stillhouse.records import Refresh, RefreshModeName
from stillhouse.refreshing.modes.mode import RefreshMode
from stillhouse.refreshing.modes.recalibrate import Recalibrate
from stillhouse.refreshing.modes.redistil import Redistil, RedistilWarm
from stillhouse.refreshing.modes.update import Update
from stillhouse.refreshing.session import Session
from stillhouse.shown import escape_line

__all__ = ["MODES", "RefreshMode", "fall_back", "get_mode", "plan_refresh"]

log = logging.getLogger(__name__)

MODES: dict[RefreshModeName, RefreshMode] = {
    "recalibrate": Recalibrate(),
    "update": Update(),
    "redistil_warm": RedistilWarm(),
    "redistil": Redistil(),
}

_REASON_TAGS: dict[RefreshModeName, str] = {"recalibrate": "recalibration_not_made", "update": "update_not_made"}


def get_mode(job: Refresh) -> RefreshMode:
    """The mode of a refresh."""
    return MODES[job.mode]


def plan_refresh(session: Session) -> Refresh:
    """Plan the refresh by its mode; if the mode cannot make it, log the reason and plan it by the fallback mode."""
    while True:
        try:
            return get_mode(session.job).plan(session)
        except StillhouseError as error:
            mode = session.job.mode
            if MODES[mode].fallback is None:
                raise
            session.registry.runs.set_tags(session.job.run_id, **{_REASON_TAGS[mode]: str(error)})
            log.info("%s is not possible: %s", mode, escape_line(error))
            session.job = fall_back(session.job, mode)


def fall_back(job: Refresh, tried: RefreshModeName) -> Refresh:
    """The requested refresh with the fallback of the mode that was tried.

    :raises ValueError: if that mode has no fallback.
    """
    mode = MODES[tried].fallback
    if mode is None:
        raise ValueError(f"a refresh of mode {tried} cannot be made, and this mode has no fallback")
    log.info("the mode is %s instead of %s", mode, tried)
    return job.model_copy(update={"mode": mode})
