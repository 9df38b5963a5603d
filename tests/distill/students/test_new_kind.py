"""A new kind of student needs a section and a file; one without a file is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from stillhouse.config import AgentConfig, AnyEncoder, AnyStudent, StudentSection
from stillhouse.config.base import tagged
from stillhouse.distill.students import columns_of, load, new_student, save
from stillhouse.distill.students.columns import StudentModule
from stillhouse.distill.students.encoders import new_encoder
from stillhouse.distill.students.kinds import _READERS, make_student, register_reader, text_columns
from stillhouse.errors import PartError
from stillhouse.parts import TextEncoderState
from tests.agents import agent_config


class LinearStudent(StudentSection):
    """Logits that are linear in the encoded row; a missing number counts as ``missing``."""

    kind: Literal["linear"] = "linear"
    missing: float = 0.0


class Linear(StudentModule):
    def __init__(self, width: int, actions: int, missing: float) -> None:
        super().__init__()
        self.spec = {"kind": "linear", "width": width, "actions": actions, "missing": missing}
        self.layer = nn.Linear(width, actions)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(torch.nan_to_num(x, nan=self.spec["missing"]))
        return logits


@make_student.register
def _(
    section: LinearStudent,
    config: AgentConfig,
    columns: list[dict[str, Any]],
    x: np.ndarray,
    initial: TextEncoderState | None,
) -> StudentModule:
    return Linear(x.shape[1], len(config.actions), section.missing)


@register_reader("linear")
def _(spec: dict[str, Any], folder: Path, config: AgentConfig | None) -> StudentModule:
    return Linear(spec["width"], spec["actions"], spec["missing"])


def with_student(section: StudentSection) -> AgentConfig:
    return agent_config().model_copy(update={"student": section})


def test_new_kind_is_made_stored_and_read(tmp_path: Path) -> None:
    config = with_student(LinearStudent(missing=2.0))
    names = [*config.observations.numbers, *config.observations.categories]
    columns = columns_of(config, pd.DataFrame({name: ["a"] for name in names}))
    assert [column["name"] for column in columns] == names
    x = np.zeros((4, len(columns)), dtype=np.float32)
    student, twin = new_student(config, columns, x), new_student(config, columns, x)
    save(student, tmp_path)
    read = load(tmp_path, config)
    rows = torch.full((1, len(columns)), torch.nan)
    assert isinstance(read, Linear) and torch.equal(read(rows), student(rows)) and torch.equal(twin(rows), read(rows))
    assert torch.equal(read(rows), read(torch.full((1, len(columns)), 2.0)))


class MadeUpStudent(StudentSection):
    kind: Literal["made_up"] = "made_up"


def test_kind_without_a_file_is_refused_by_name(tmp_path: Path) -> None:
    section = MadeUpStudent()
    config = with_student(section)
    for call in (
        lambda: new_student(config, [], np.zeros((1, 0), dtype=np.float32)),
        lambda: text_columns(section, config, pd.DataFrame(), None),
    ):
        with pytest.raises(TypeError, match="no student of kind 'made_up': MadeUpStudent is not registered"):
            call()
    (tmp_path / "student.json").write_text(json.dumps({"kind": "made_up"}))
    with pytest.raises(PartError, match=r"a student of kind 'made_up'; this version reads .*tabular, text"):
        load(tmp_path, config)


@pytest.mark.parametrize(("kind", "section"), tagged(AnyStudent).items())
def test_every_kind_of_the_agent_file_is_registered(kind: str, section: type[StudentSection]) -> None:
    assert section in make_student.registry and kind in _READERS
    assert (section in text_columns.registry) == (section.reads_text is not StudentSection.reads_text)


def test_every_encoder_of_the_agent_file_is_registered() -> None:
    assert all(section in new_encoder.registry for section in tagged(AnyEncoder).values())
    with pytest.raises(TypeError, match="no encoder for MadeUpStudent"):
        new_encoder(MadeUpStudent(), 10, 4, 0.0)
