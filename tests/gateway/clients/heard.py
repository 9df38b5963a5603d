"""What a client heard, printed as JSON: shared by the scripts of this folder, which run in environments/clients.txt.

A script plays the same steps at each address that it is given. The word ``move`` or ``stay`` in an answer says who
answered: the upstream moves, the champion stays.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel


class Intent(BaseModel):
    """The type that clients parse answers into."""

    intent: Literal["stay", "move"]


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"intent": {"type": "string", "enum": ["stay", "move"]}},
    "required": ["intent"],
    "additionalProperties": False,
}
NAMES = ("stay", "move")
KEY, MODEL = "sk-clients-test", "m"


class Heard:
    """The answers at one address."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.types: dict[str, list[str]] = {}
        self.tokens: dict[str, int] = {}
        self.dumps: list[Any] = []
        self.turns = 0
        """Requests that go upstream whoever may answer: those with the result of a tool."""

    def note(self, step: str, answer: Any, *objects: Any, tokens: int | None = None, turns: int = 0) -> None:
        """Note the answer in one step.

        :param answer: what the client made of it: a text, or the action.
        :param objects: the client's objects; the last one is kept whole.
        :param tokens: as the client counts them.
        """
        self.answers[step] = str(answer)
        self.types[step] = [type(part).__name__ for part in (answer, *objects)]
        if tokens is not None:
            self.tokens[step] = tokens
        self.turns += turns
        if objects and isinstance(objects[-1], BaseModel):
            # reading what it holds must not warn: that would say that the client took it for another type
            dump = objects[-1].model_dump(mode="json", warnings="error")
            if str(dump.get("id")).startswith("lc_run"):  # langchain draws it
                del dump["id"]
            if type(objects[-1]).__name__ == "ModelResponseStream":  # litellm sets its own time
                del dump["created"]
            self.dumps.append(dump)


def main(play: Callable[[str, Heard], None]) -> None:
    """Play the steps at each address of the command line."""
    report = []
    for address in sys.argv[1:]:
        heard = Heard()
        play(f"{address}/v1", heard)
        report.append(vars(heard))
    print(json.dumps(report))
