"""Replays in MLflow: an experiment of their own, a run for each replay, and a nested run for each policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stillhouse.records import Record
from stillhouse.registry.experiment import open_experiment
from stillhouse.registry.runs import Runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["log_policy_runs"]

Metrics = Mapping[str, float]


def log_policy_runs(
    agent: str,
    report: Record,
    figure: Figure,
    totals: Mapping[str, Metrics],
    steps: Mapping[str, Sequence[Metrics]],
    tracking_uri: str | None = None,
) -> str:
    """Log a replay to the experiment ``<agent>-replay``.

    The report and the figure belong to the run above; each policy's run has its totals, and its metrics by step.

    :param totals: metrics of each policy, by its name.
    :param steps: metrics of each policy's steps 1, 2, …, by its name.
    :returns: the id of the run above.
    :raises RegistryError: if MLflow does not answer.
    """
    runs = Runs(open_experiment(f"{agent}-replay", tracking_uri))
    parent = runs.create_parent(f"replay {agent}", {"role": "replay", "agent": agent}, {"policies": len(totals)})
    runs.log(parent, files={"replay.json": report, "figures/replay.png": figure})
    for policy, metrics in totals.items():
        nested = runs.create_nested(parent, policy, {"role": "policy", "policy": policy, "agent": agent})
        runs.log(nested, metrics=metrics, history=steps[policy])
        runs.close_refresh(nested)
    runs.close_refresh(parent)
    return parent
