"""The weeks of the front door's story: a line each, and one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.scripted_model import LATE
from stillhouse.plotting import BLUE, FAINT, GREEN, INK, ORANGE, SKY, VERMILLION

__all__ = ["HEADER", "Week", "draw"]


@dataclass
class Week:
    """What happened in one week of the story."""

    week: int
    requests: int
    late: int = 0
    local: int = 0
    agreed: int = 0
    champion: str = ""
    refresh: str = ""

    @property
    def line(self) -> str:
        """The line of the table."""
        agreement = f"{self.agreed / self.local:.3f}" if self.local else "-"
        cells = f"{self.week:4d} {self.requests:9d} {self.late:7d} {self.local:8d} {self.local / self.requests:9.0%}"
        return f"{cells} {agreement:>10}  {self.champion or 'none yet':10s} {self.refresh}".rstrip()


HEADER = f"week  requests {LATE:>7}    local  coverage  agreement  champion   refresh"


def draw(weeks: Sequence[Week], agreement: float, arrives: int, file: Path) -> None:
    """Coverage and agreement by week, the promise, and the champions as bands."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    champions = list(dict.fromkeys(week.champion for week in weeks if week.champion))
    for number, name in enumerate(champions):
        own = [week.week for week in weeks if week.champion == name]
        axes.axvspan(own[0] - 0.5, own[-1] + 0.5, color=(SKY, ORANGE)[number % 2], alpha=0.15, lw=0)
        axes.annotate(name, ((own[0] + own[-1]) / 2, 1.04), ha="center", color=INK)
    numbers = [week.week for week in weeks]
    axes.plot(numbers, [w.local / w.requests for w in weeks], "o-", color=BLUE, label="coverage: answered locally")
    known = [week for week in weeks if week.local]
    axes.plot([w.week for w in known], [w.agreed / w.local for w in known], "s--", color=GREEN, label="their agreement")
    axes.axhline(agreement, color=INK, ls=":", lw=1, label=f"promised: {agreement:g}")
    axes.axvline(arrives - 0.5, color=VERMILLION, lw=1, ls="-.", label=f"{LATE} arrives")
    axes.set(xlabel="week (compressed: some seconds)", ylabel="share", ylim=(0, 1.1), xticks=numbers)
    axes.grid(color=FAINT)
    axes.legend(loc="center left")
    figure.savefig(file, dpi=130)
