"""The modes of a refresh, one a file; a new one is a file here and a line in :data:`MODES`."""

from __future__ import annotations

from stillhouse.errors import StillhouseError
from stillhouse.records import Refresh, RefreshModeName
from stillhouse.refreshing.modes.mode import RefreshMode
from stillhouse.refreshing.modes.recalibrate import Recalibrate
from stillhouse.refreshing.modes.redistil import Redistil, RedistilWarm
from stillhouse.refreshing.modes.update import Update
from stillhouse.refreshing.session import Session

__all__ = ["MODES", "RefreshMode", "fall_back", "mode_of", "plan_refresh"]

MODES: dict[RefreshModeName, RefreshMode] = {
    "recalibrate": Recalibrate(),
    "update": Update(),
    "redistil_warm": RedistilWarm(),
    "redistil": Redistil(),
}

_REASON_TAGS: dict[RefreshModeName, str] = {"recalibrate": "recalibration_not_made", "update": "update_not_made"}


def mode_of(job: Refresh) -> RefreshMode:
    """The mode of a refresh."""
    return MODES[job.mode]


def plan_refresh(session: Session) -> Refresh:
    """The refresh as its mode does it or, with the reason logged, as the mode that it falls back to."""
    while True:
        try:
            return mode_of(session.job).plan(session)
        except StillhouseError as error:
            asked = session.job.mode
            if MODES[asked].falls_back_to is None:
                raise
            session.registry.runs.set_tags(session.job.run_id, **{_REASON_TAGS[asked]: str(error)})
            session.job = fall_back(session.job, asked)


def fall_back(job: Refresh, tried: RefreshModeName) -> Refresh:
    """The refresh as it was asked for, by the mode that takes over from the one that was tried.

    :raises ValueError: if none does.
    """
    mode = MODES[tried].falls_back_to
    if mode is None:
        raise ValueError(f"nothing takes over where a refresh by {tried} cannot be made")
    return job.model_copy(update={"mode": mode})
