"""The agent in an application's process: it decides with the champion, and records observations and outcomes."""

from stillhouse.runtime.agent import Agent, Decision
from stillhouse.runtime.ranking import Ranking
from stillhouse.runtime.status import Problem, Status

__all__ = ["Agent", "Decision", "Problem", "Ranking", "Status"]
