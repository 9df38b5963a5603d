"""The generated pages equal the result files."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pages
from benchmarks.report import Goal

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
every_result = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def read(file: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


def test_readme_has_the_generated_section() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert pages.readme_with(pages.readme_section(), readme) == readme, "run: python -m benchmarks.pages"


def test_the_benchmarks_page_is_generated() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert page == pages.benchmarks_page(), "run: python -m benchmarks.pages"


def test_the_readme_section_names_commit_and_command() -> None:
    result = read(ROOT / "benchmarks" / "results" / "loop.json")
    section = pages.readme_section()
    assert result["command"] in section and result["commit"] in section


@every_result
def test_a_section_names_its_circumstances(file: Path) -> None:
    result = read(file)
    text = pages.circumstances(result)
    assert result["command"] in text and result["commit"] in text and result["machine"]["cpu"] in text


@every_result
def test_a_goal_is_met_only_if_its_figure_says_so(file: Path) -> None:
    result = read(file)
    assert result["command"] == f"python -m benchmarks.{file.stem}"
    for recorded in result["goals"]:
        met = recorded.pop("met")
        goal = Goal(**recorded)
        assert goal.met == met and goal.low <= goal.measured <= goal.high


@every_result
def test_a_result_has_the_claim_of_its_module(file: Path) -> None:
    module = ast.parse((ROOT / "benchmarks" / f"{file.stem}.py").read_text(encoding="utf-8"))
    (claim,) = [
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CLAIM"
    ]
    assert read(file)["claim"] == claim


def test_descriptions_are_of_goals_that_exist() -> None:
    known = {goal["name"] for file in FILES for goal in read(file)["goals"]}
    measured = {file.stem for file in FILES}
    if set(pages.METHOD) == measured:  # else a benchmark was described and has not been run yet
        assert set(pages.MEANING) - known <= {"requests_vs_litserve"}  # stated by number of connections only
    assert measured <= set(pages.METHOD)
    for name in set(pages.METHOD) - measured:
        assert (ROOT / "benchmarks" / f"{name}.py").exists()
