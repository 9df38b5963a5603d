"""The section ``front_door``: the task of the front door that an agent decides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from stillhouse.config.base import Section

__all__ = ["FrontDoor"]


class FrontDoor(Section):
    """Which task of the front door the agent decides, and how a request becomes an observation.

    >>> door = FrontDoor(task="0123456789abcdef")
    >>> door.read_row("my card is gone", ["text"])
    {'text': 'my card is gone'}
    >>> FrontDoor(task="0123456789abcdef", fields=True).read_row('{"amount": 5, "note": "x"}', ["amount", "hour"])
    {'amount': 5, 'hour': None}
    """

    task: str = Field(pattern=r"^[0-9a-f]{16}$", description="the task's key, as `stillhouse tasks` lists it")
    fields: bool = Field(
        default=False,
        description="true: the message is a JSON object, and its fields are the columns; false: the message is the "
        "agent's only text column",
    )
    shadow: bool = Field(
        default=False, description="true: the champion answers nothing; what it would have said is compared only"
    )
    examples: bool = Field(
        default=False,
        description="true: messages may stand as examples in MLflow's models and in Great Expectations' pages",
    )
    caller_share: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="largest share of one caller in what is learned from and judged by, once there are so many "
        "callers that it can be kept: at 0.2, five",
    )

    def read_row(self, observation: str, columns: list[str]) -> dict[str, Any]:
        """The values of an observation by column; None where a field is absent.

        :param observation: the varying part of a request.
        :raises ValueError: if it is no JSON object, with ``fields``.
        """
        if not self.fields:
            return {columns[0]: observation}
        try:
            content = json.loads(observation)
        except (ValueError, RecursionError) as error:
            raise ValueError("the message is no JSON object") from error
        if not isinstance(content, Mapping):
            raise ValueError("the message is no JSON object")
        return {name: content.get(name) for name in columns}
