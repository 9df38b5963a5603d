"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["AgentName"]

AgentName = Annotated[str, typer.Argument(help="name of an agent file in agents/, such as flights")]
