"""The teachers section of the agent file: all kinds, and mistakes reported with their lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.config import AnyTeacher, EndpointTeacher, EnsembleTeacher, leaves, load_file
from stillhouse.config.base import tagged
from tests.test_config import GOOD, error_message, file  # noqa: F401

FOREST = '  - {kind: python, name: forest, target: "toy:Forest", weight: 2}\n'
KINDS = """\
  - {kind: python, name: forest, target: "toy:Forest", weight: 2}
  - {kind: module, name: net, target: "toy:net", columns: [temp, number], answers: logits}
  - {kind: mlflow, name: big, uri: "models:/big@champion"}
  - kind: ensemble
    name: both
    weight: 3
    members:
      - {kind: endpoint, name: llm, base_url: "http://127.0.0.1:8080/v1", model: m, prompt: "{temp} at {origin}?"}
      - {kind: python, name: rules, target: "toy:Rules", weight: 2}
  - {kind: huggingface, name: bert, folder: models/bert, template: "{temp:.0f} at {origin}"}
"""
KIND_TAGS = ", ".join(tagged(AnyTeacher))


def test_agent_file_reads_every_kind(file: Path) -> None:  # noqa: F811
    file.write_text(GOOD.replace(FOREST, KINDS))
    toy = load_file(file)
    assert [teacher.kind for teacher in toy.teachers] == ["python", "module", "mlflow", "ensemble", "huggingface"]
    assert isinstance(toy.teachers[3], EnsembleTeacher) and isinstance(toy.teachers[3].members[0], EndpointTeacher)
    named = {leaf.name: leaf.share for leaf in leaves(toy.teachers)}
    eighths = {"forest": 2, "net": 1, "big": 1, "both.llm": 1, "both.rules": 2, "bert": 1}
    assert named == pytest.approx({name: share / 8 for name, share in eighths.items()})


MISTAKES = [
    ("kind: module", "kind: modul", "13: teachers.1.kind: 'modul' is not known; did you mean 'module'?"),
    (
        "kind: mlflow, ",
        "",
        f"14: teachers.2.kind: is required and missing: one of {KIND_TAGS}",
    ),
    (
        "answers: logits",
        "answers: logits, batchsize: 9",
        "13: teachers.1.batchsize: unknown key; did you mean 'batch_size'?",
    ),
    (
        "kind: endpoint, ",
        "",
        f"19: teachers.3.members.0.kind: is required and missing: one of {KIND_TAGS}",
    ),
    ("model: m, ", "model: m, vote: 3, ", "19: teachers.3.members.0.vote: unknown key; did you mean 'votes'?"),
    ("model: m, ", "", "19: teachers.3.members.0.model: is required and missing: the model's name at that address"),
    ("model: m,", "model: m, votes: 0,", "19: teachers.3.members.0.votes: must be at least 1, not 0"),
    (
        "columns: [temp, number], ",
        "",
        "13: teachers.1: give either `encode`, a function, or `columns`, a list of number columns",
    ),
    ("[temp, number]", "[tmp]", "13: teachers.1.columns: no column is called 'tmp'; did you mean 'temp'?"),
    ("[temp, number]", "[origin]", "13: teachers.1.columns: 'origin' is a category column; it must be a number"),
    (
        "models:/big@champion",
        "models:/big",
        "14: teachers.2.uri: 'models:/big' must be 'models:/name@alias', "
        "'models:/name/7', 'models:/m-…' or 'runs:/id/path'",
    ),
    ("{temp} at", "{tempp} at", "19: teachers.3.members.0.prompt: no column is called 'tempp'; did you mean 'temp'?"),
    (
        "{temp} at",
        "{temp.real} at",
        "19: teachers.3.members.0.prompt: {temp.real} must be a column's name alone; write {{ and }} for braces",
    ),
    ("{temp} at", "{temp at", "19: teachers.3.members.0.prompt: unexpected '{' in field name"),
    (
        "{temp} at {origin}?",
        "{actions}?",
        "19: teachers.3.members.0.prompt: names no column in braces: every row would be the same question",
    ),
    ("http://127.0.0.1:8080/v1", "ftp://x", "19: teachers.3.members.0.base_url: must be an http or https address"),
    (
        "http://127.0.0.1:8080/v1",
        "https://me:secret@x/v1",
        "19: teachers.3.members.0.base_url: must hold no user, "
        "password or query: put the key into the variable that `key_variable` names",
    ),
    (
        "model: m,",
        "model: m, probabilities: votes, temperature: 0,",
        "19: teachers.3.members.0.temperature: at 0 all votes are the same: raise it, or set `votes` to 1",
    ),
    (
        "name: rules",
        "name: llm",
        "18: teachers.3.members: names of teachers must differ, and 'llm' is given more than once",
    ),
]


@pytest.mark.parametrize(("right", "wrong", "message"), MISTAKES, ids=[message[:50] for *_, message in MISTAKES])
def test_mistake_is_reported_with_its_line(file: Path, right: str, wrong: str, message: str) -> None:  # noqa: F811
    text = GOOD.replace(FOREST, KINDS)
    assert right in text
    assert error_message(file, text.replace(right, wrong, 1)) == message


def test_error_does_not_repeat_a_secret(file: Path) -> None:  # noqa: F811
    text = GOOD.replace(FOREST, KINDS).replace("http://127", "https://me:secret@127")
    assert "secret" not in error_message(file, text)
