"""``stillhouse adopt``: make an agent of a task that came through the front door."""

from __future__ import annotations

from typing import Annotated

import typer

from stillhouse.commands.output import console
from stillhouse.shown import escape_line

__all__ = ["adopt"]


def adopt(
    task: Annotated[str, typer.Argument(metavar="TASK", help="key or name of a task, as `stillhouse tasks` lists it")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="name of the new agent: agents/NAME.yaml")],
) -> None:
    """Make an agent of a task: draft its agent file, and hand over what was recorded.

    The actions come from the task's schema or answers, the columns from its
    messages. The upstream is its teacher: what it has answered is learned from, and
    nothing is asked twice. Until the promised agreement is proved on its answers,
    the champion answers nothing. See docs/how-to/front-door.md.

    For example:

        stillhouse tasks
        stillhouse adopt 3f2a91 intents
        python -m flows refresh --agent intents --trigger bootstrap
        stillhouse serve intents --upstream https://api.openai.com/v1
    """
    from stillhouse.gateway.adopting import adopt as adopt_task

    adopted = adopt_task(task, name)
    moved = adopted.handed_over
    console.done(f"{escape_line(str(adopted.path))}: {len(adopted.actions)} actions; read it before you go on")
    console.print(f"{moved.observations:,} requests are in its knowledge base, {moved.labels:,} of them with an answer")
    for count, why in (
        (moved.unknown, "answers are no action of the agent"),
        (moved.unreadable, "messages do not fit its columns"),
        (moved.capped, "answers were left out, because one caller has too large a share"),
    ):
        if count:
            console.print(f"{count:,} {why}")
    console.print(f"next: stillhouse check {name}")
    console.print(f"then: python -m flows refresh --agent {name} --trigger bootstrap")
