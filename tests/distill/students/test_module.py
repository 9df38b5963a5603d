"""Custom students: made by the factory in the agent file, identified by it, refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stillhouse.compress.search.candidates import CandidateBuilder
from stillhouse.compress.variants import target_from_student, variant_writer
from stillhouse.config import AgentConfig, Fp32, PruneHeads, PruneUnits
from stillhouse.distill.students import CustomStudent, load, new_student, save
from stillhouse.errors import PartError, StillhouseError
from tests.agents import agent_config

COLUMNS = [{"name": "a", "type": "number"}, {"name": "place", "type": "category", "values": ["north", "south"]}]
X = np.zeros((4, 2), dtype=np.float32)
HERE = "tests.distill.students.test_module"


def agent(target: str, **settings: Any) -> AgentConfig:
    student = {"kind": "module", "target": f"{HERE}:{target}", "settings": settings}
    return agent_config(student=student, compression={"recipes": [{"method": "fp32"}], "search": None})


class Plain(nn.Module):
    def __init__(
        self, columns: list[dict[str, Any]], actions: tuple[str, ...], width: int = 3, scale: float = 1
    ) -> None:
        super().__init__()
        self.inside, self.out = nn.Linear(len(columns), width), nn.Linear(width, len(actions))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.inside(torch.nan_to_num(x))))


def too_wide(columns: Any, actions: Any) -> nn.Module:
    return nn.Sequential(Plain(columns, (*actions, "more")))


class Forgetful(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.inside(x)))


def no_module(columns: Any, actions: Any) -> str:
    return "a student"


class Fixed(nn.Module):
    def __init__(self, columns: Any, actions: Any) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), 2)


def test_same_seed_gives_the_same_custom_student_and_it_survives_a_round_trip(tmp_path: Path) -> None:
    config = agent("Plain", width=5)
    student, twin = new_student(config, COLUMNS, X), new_student(config, COLUMNS, X)
    assert isinstance(student, CustomStudent)
    x = torch.randn(6, 2)
    assert torch.equal(student(x), twin(x)) and student(x).shape == (6, 2)
    with torch.no_grad():
        student.module.out.weight.mul_(3)
    save(student, tmp_path)
    (tmp_path / "columns.json").write_text(json.dumps(COLUMNS))
    assert torch.equal(load(tmp_path, config)(x), student(x))
    for other in (agent("Plain", width=6), agent("too_wide"), agent_config()):
        with pytest.raises(PartError, match="describes another one than was stored"):
            load(tmp_path, other)
    with pytest.raises(PartError, match="only its agent file can make"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("Absent", {}, "has no 'Absent'"),
        ("Plain", {"depth": 2}, "makes no student: TypeError: .*depth"),
        ("no_module", {}, "it gives a str, not a torch.nn.Module"),
        ("too_wide", {}, r"returns \[3, 3\] for 3 rows; it must return logits \[3, 2\]"),
        ("Forgetful", {}, "a missing number is NaN"),
        ("Fixed", {}, "no parameters to learn"),
    ],
)
def test_invalid_factories_are_refused(target: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError, match=message) as error:
        new_student(agent(target, **settings), COLUMNS, X)
    assert "agents/toy.yaml: student.target" in str(error.value)


def test_custom_student_is_pruned_by_tracing_and_inapplicable_steps_are_refused(tmp_path: Path) -> None:
    """Hidden units of an ordinary module are known to be its own; it has no heads that could go."""
    x = np.random.default_rng(0).normal(size=(150, 2)).astype(np.float32)
    student = new_student(agent("Plain", width=60), COLUMNS, X)
    subject = target_from_student(
        student,
        COLUMNS,
        ("wait", "go"),
        calibration=lambda columns: x,
        validation=lambda columns: x,
        quality=lambda p: float(p[:, 0].mean()),
    )
    builder = CandidateBuilder(subject, variant_writer("toy", ("wait", "go"), {}), tmp_path, 0.05)
    units = builder.build((PruneUnits(method="prune_units", recover_epochs=0),))
    heads = builder.build((PruneHeads(method="prune_heads", recover_epochs=0),))
    assert units.refused is None and units.bytes < builder.build((Fp32(method="fp32"),)).bytes
    assert heads.refused == "prune_heads: CustomStudent has no attention with query, key, value, out, heads and size"
    assert student.module.inside.out_features == 60


def test_custom_student_with_text_columns_is_refused() -> None:
    student = {"kind": "module", "target": f"{HERE}:Plain"}
    with pytest.raises((ValueError, StillhouseError), match="'module' reads no text"):
        agent_config(student=student, observations={"columns": {"said": {"type": "text"}}})
