"""Maintain: the knowledge base's tables stay small to open and no larger than they need to be."""

from __future__ import annotations

from datetime import datetime

from prefect import flow

from stillhouse.knowledge.upkeep import UpkeepReport
from stillhouse.locks import upkeep_lock
from tasks import maintaining
from tasks.common import AgentName

__all__ = ["maintain"]


@flow(name="maintain", flow_run_name="maintain {agent}", validate_parameters=True)
def maintain(agent: AgentName = "flights", as_of: datetime | None = None) -> UpkeepReport:
    """Flush the spools, join small files, remove rows older than `upkeep.keep`, and free what no version in use needs.

    What a registered model was trained or proved on stays, rows and table versions alike. Where the registry does not
    say which models there are, nothing is removed. May be killed at any moment and run again.

    Args:
        agent: name of an agent file in agents/
        as_of: the moment from which `upkeep.keep` counts back (UTC); empty: now, by the clock that the agent file names
    """
    with upkeep_lock(agent):
        flushed = maintaining.flush_spools(agent)
        now = maintaining.resolve_time(agent, as_of)
        learned = maintaining.learned_windows(agent)
        done = UpkeepReport(
            agent=agent,
            as_of=now,
            flushed=flushed,
            problems=maintaining.look_for_damage(agent),
            compacted=maintaining.compact(agent),
            removed=maintaining.remove_old_rows(agent, now, learned),
            freed=maintaining.free(agent, learned),
            models=len(learned.windows),
            nothing_removed=learned.unknown,
        )
        maintaining.publish(done)
    return done
