"""The agent's own side: it decides with the champion, records what it lived through, and learns outcomes."""

from stillhouse.runtime.agent import Agent, Decision
from stillhouse.runtime.status import Problem, Status

__all__ = ["Agent", "Decision", "Problem", "Status"]
