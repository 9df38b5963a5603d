"""``stillhouse teachers``: the weights of an agent's teachers, and their changes."""

from __future__ import annotations

from typing import Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AgentName
from stillhouse.commands.output import console, format_percent
from stillhouse.terminal import Table

__all__ = ["teachers"]


def teachers(
    agent: AgentName,
    last: Annotated[int, typer.Option(min=0, help="how many changes of the weights to show")] = 10,
) -> None:
    """Show the weight of each of an agent's teachers, the slices where it differs, and why it changed."""
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.registry import Registry
    from stillhouse.teachers.ensemble import read_reference, read_weights
    from stillhouse.teachers.weight_updates import current_weights

    settings, registry = config.load(agent), Registry(agent)
    with console.status("asking MLflow"):
        champion = registry.champion()
        folder = registry.models.fetch(registry.baseline(champion).teacher) if champion else None
    mixture, version = (read_weights(folder), read_reference(folder).version) if folder else (None, "")
    changes = KnowledgeBase(settings).journal.weight_changes()
    now = current_weights(
        mixture, [change for change in changes if change.version == version and change.job == "watch"]
    )
    slices = sorted({name for name, _ in now if name and _differs(now, name)})
    table = Table("teacher", "kind", "by the agent file", "now", *slices)
    for member in config.weighted_teachers(settings):
        kinds = ", ".join(dict.fromkeys(leaf.teacher.kind for leaf in member.leaves))
        shares = (format_percent(now.get((name, member.name))) for name in ("", *slices))
        table.add_row(member.name, kinds, f"{member.share:.1%}", *shares)
    console.print(table)
    if mixture is None:
        console.print("the champion's teachers have the weights of the agent file")
    if not changes or not last:
        return
    table = Table("as of", "teacher", "slice", "before", "after", "why")
    for change in changes[-last:]:
        table.add_row(
            f"{change.as_of:%Y-%m-%d %H:%M}",
            change.teacher,
            change.slice,
            f"{change.before:.1%}",
            f"{change.after:.1%}",
            change.reason,
        )
    console.print(table)


def _differs(shares: dict[tuple[str, str], float], name: str) -> bool:
    """Whether any weight in the slice ``name`` differs from the weight on all rows by a percentage point or more."""
    pairs = (
        (share, shares.get(("", teacher), share))
        for (slice_name, teacher), share in shares.items()
        if slice_name == name
    )
    return any(abs(share - overall) >= 0.01 for share, overall in pairs)
