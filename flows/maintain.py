"""Maintain: flush the spools, compact the tables of the knowledge base, and delete old rows and unused files."""

from __future__ import annotations

from datetime import datetime

from prefect import flow

from stillhouse.knowledge.upkeep import UpkeepReport
from stillhouse.locks import upkeep_lock
from tasks import maintaining
from tasks.common import AgentName
from tasks.endings import conclude, keep_result, name_run

__all__ = ["maintain"]


@flow(name="maintain", flow_run_name=name_run, on_completion=[keep_result], validate_parameters=True)
def maintain(agent: AgentName = "flights", as_of: datetime | None = None) -> UpkeepReport:
    """Flush the spools, compact small files, delete rows older than `upkeep.keep`, and delete files of unused versions.

    Rows and table versions on which a registered model was trained or evaluated are kept. If the registry cannot list
    the models, nothing is deleted. A run may be killed at any time and repeated.

    Args:
        agent: name of the agent file in agents/
        as_of: time (UTC) from which `upkeep.keep` counts back; empty: now, by the clock that the agent file names
    """
    with upkeep_lock(agent):
        flushed = maintaining.flush_spools(agent)
        now = maintaining.resolve_time(agent, as_of)
        learned = maintaining.learned_windows(agent)
        report = UpkeepReport(
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
        maintaining.publish(report)
    state = "Problems found" if maintaining.list_problems(report) else "Completed"
    return conclude("maintain", report, maintaining.summarize_report(report), state=state, as_of=report.as_of)
