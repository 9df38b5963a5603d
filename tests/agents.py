"""The small agent of all tests that need a valid agent file and no particular one.

The agent is called ``toy``, has two actions and three columns, and names parts that do not exist: nothing here can be
run. Its teachers, sources and observations belong to the tests that need them. For an agent that runs, see
``tests/flows/toy.py`` (table rows) and ``tests/flows/clerk.py`` (texts).

>>> agent_config(actions=["no", "yes"], budgets={"max_bytes": 2000}).actions
('no', 'yes')
"""

from __future__ import annotations

import copy
from typing import Any

import yaml

from stillhouse.config import AgentConfig

__all__ = ["SMALL_AGENT", "agent_config", "agent_file", "agent_sections"]

SMALL_AGENT: dict[str, Any] = {
    "agent": "toy",
    "actions": ["stay", "move"],
    "observations": {
        "source": "toy:rows",
        "since": "2013-01-01T00:00:00Z",
        "columns": {"origin": {"type": "category"}, "temp": {"type": "number"}, "wind": {"type": "number"}},
    },
    "outcomes": {"source": "toy:outcomes", "delay": "1d"},
    "teachers": [{"kind": "python", "name": "t", "target": "toy:Teacher"}],
    "student": {"kind": "tabular"},
    "windows": {"train": "8w", "test": "1w", "current": "7d"},
    "watch": {"thresholds": {"psi": 0.25}},
}
"""The sections of the agent file; a copy of them is what the functions below begin with."""


def agent_sections(**sections: Any) -> dict[str, Any]:
    """The small agent's sections as a mapping, with changes.

    Args:
        sections: new values by section. The keys of a mapping replace the same keys of the section and leave its other
            keys; any other value replaces the section. ``observations={"columns": …}`` thus keeps ``source`` and
            ``since``, and replaces all columns.
    """
    merged = copy.deepcopy(SMALL_AGENT)
    for name, value in sections.items():
        old = merged.get(name)
        merged[name] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def agent_file(**sections: Any) -> str:
    """The text of the agent file, with changes as in :func:`agent_sections`; a test may append sections to it."""
    return yaml.safe_dump(agent_sections(**sections), sort_keys=False)


def agent_config(**sections: Any) -> AgentConfig:
    """The validated agent file, with changes as in :func:`agent_sections`."""
    return AgentConfig.model_validate(agent_sections(**sections))
