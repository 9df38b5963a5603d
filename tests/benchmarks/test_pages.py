"""The pages quote the measured figures and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import pages
from benchmarks.report import Goal

ROOT = Path(__file__).parent.parent.parent


def test_the_pages_say_what_was_measured() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert pages.readme_with(pages.readme_section(), readme) == readme, "run: python -m benchmarks.pages"
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == pages.benchmarks_page()


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda file: file.stem)
def test_a_goal_is_met_only_if_its_figure_says_so(file: Path) -> None:
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["command"] == f"python -m benchmarks.{file.stem}"
    for recorded in result["goals"]:
        met = recorded.pop("met")
        goal = Goal(**recorded)
        assert goal.met == met and goal.low <= goal.measured <= goal.high
