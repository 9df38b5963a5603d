"""Gains, stretches and seeds of `benchmarks.agents`, worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import agents, pages
from stillhouse.config import load_file

ROOT = Path(__file__).parents[2]


def week(champion: float | None, static: float | None, response: str = "hold", version: str = "a@1") -> dict[str, Any]:
    gates = ["promoted"] if response == "redistil" else []
    return {
        "ending": "2024-02-05T00:00:00Z",
        "quality_champion": champion,
        "quality_static": static,
        "response": response,
        "gates": gates,
        "champion": version,
    }


def record(weeks: list[dict[str, Any]], oracle: list[int], seed: int = 0, **fields: Any) -> dict[str, Any]:
    base = {"agent": "toy", "seed": seed, "seconds": 50.0 + seed, "range": 1.0, "better": "higher"}
    return base | {"weeks": weeks, "oracle": {"trains_before": oracle}} | fields


CALM = [week(0.8, 0.8)] * 4
CHANGED = [*CALM, week(0.6, 0.6, "redistil"), week(0.9, 0.6, version="a@2"), week(0.8, 0.6, version="a@2")]


def test_a_gain_is_a_share_of_the_range_in_the_direction_of_the_measure() -> None:
    assert agents.gain(record(CHANGED, [5])) == pytest.approx(0.5 / 7)
    losses = [week(20.0, 30.0), week(25.0, 30.0), week(None, 30.0), week(25.0, None)]
    assert agents.gain(record(losses, [], better="lower", range=100.0)) == pytest.approx(0.075)


@pytest.mark.parametrize(("oracle", "held"), [([5], 4), ([], 4), ([2], 2), ([1, 2, 3, 4, 5], 1)])
def test_a_stretch_ends_where_the_agent_or_the_oracle_responds(oracle: list[int], held: int) -> None:
    assert agents.longest_hold(record(CHANGED, oracle)) == held


def test_a_new_champion_and_a_refusal_are_responses() -> None:
    switched = [week(0.8, 0.8), week(0.8, 0.8), week(0.8, 0.8, version="a@2")]
    assert agents.longest_hold(record(switched, [])) == 1
    refused = [week(0.8, 0.8) | {"gates": ["refused"]}, week(0.8, 0.8)]
    assert agents.longest_hold(record(refused, [])) == 0


def test_the_gain_that_counts_is_the_lower_end_over_the_seeds() -> None:
    played = [record([*CALM, *[week(0.8 + gain, 0.8)] * 4], [], seed) for seed, gain in enumerate((0.2, 0.3, 0.4))]
    gained, held, seconds = agents.goals_of(played)
    assert gained.measured == pytest.approx(0.15 - 4.302653 * 0.05 / 3**0.5) and gained.high == pytest.approx(0.2)
    assert gained.low == gained.measured and gained.met
    assert (held.measured, seconds.measured, seconds.low, seconds.high) == (7, 51.0, 50.0, 52.0)
    never = agents.goals_of([record(CALM, [])])[0]
    assert never.measured == 0 and not never.met


@pytest.mark.parametrize("file", sorted((ROOT / "agents").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_copy_of_an_agent_file_differs_in_its_seed_alone(tmp_path: Path, file: Path) -> None:
    copy = tmp_path / file.name
    copy.write_text(agents.with_seed(file, 7), encoding="utf-8")
    before, after = load_file(file), load_file(copy)
    assert after.distillation.seed == 7
    changed = {"distillation": before.distillation.model_copy(update={"seed": 7}).model_dump()}
    assert after.model_dump() == before.model_dump() | changed


def test_options_of_a_demo_are_those_of_the_makefile() -> None:
    assert agents.demo_options("router") == ["--watch-days", "1"]
    assert agents.demo_options("flights") == []


def test_first_weeks_are_those_before_the_first_that_was_scored() -> None:
    assert agents.count_first_weeks(ROOT / "agents" / "router.yaml", [week(0.8, 0.8)]) == 4


def test_every_small_agent_has_a_meaning() -> None:
    small = [name for name in agents.list_examples() if name not in agents.OTHERS]
    assert [name for name in small if f"{name}_gain" not in pages.MEANING] == []
