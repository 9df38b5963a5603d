"""``module:object`` is imported, or the error names the key and the problem."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from stillhouse.config.base import Section
from stillhouse.errors import PartError
from stillhouse.parts import Teacher, TextEncoderState, import_kinds, resolve

WHERE = "agents/toy.yaml: observations.source"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with modules of its own."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_an_object_and_an_attribute_of_one() -> None:
    assert resolve("math:sqrt") is math.sqrt
    assert resolve("pathlib:Path.cwd")() == Path.cwd()


def test_the_working_directory_is_importable(folder: Path) -> None:
    (folder / "parts_of_mine.py").write_text("def rows(start, end): return 'rows'\n")
    source = resolve("parts_of_mine:rows", where=WHERE)
    assert callable(source)
    assert source(None, None) == "rows"


@pytest.mark.parametrize("target", ["math", "math:", ":sqrt", ""])
def test_a_target_of_another_form(target: str) -> None:
    with pytest.raises(PartError, match=r"observations\.source: .* is not of the form 'package.module:object'"):
        resolve(target, where=WHERE)


def test_a_module_that_is_not_there(folder: Path) -> None:
    with pytest.raises(PartError, match=r"source: 'no_such_module:rows' does not import \(ModuleNotFoundError: .*run"):
        resolve("no_such_module:rows", where=WHERE)


@pytest.mark.parametrize(("text", "error"), [("1 / 0", "ZeroDivisionError"), ("def f(:", "SyntaxError")])
def test_a_module_that_fails(folder: Path, text: str, error: str) -> None:
    (folder / "part_that_fails.py").write_text(text)
    with pytest.raises(PartError, match=rf"does not import \({error}: ") as caught:
        resolve("part_that_fails:rows", where=WHERE)
    assert type(caught.value.__cause__).__name__ == error


def test_an_object_that_is_not_there_and_those_that_are(folder: Path) -> None:
    (folder / "part_with_names.py").write_text(
        "import json\nfrom math import sqrt\ndef path(): ...\nclass Forest: ...\ndef _own(): ...\n"
    )
    with pytest.raises(PartError, match=r"'part_with_names' has no 'Forrest'; it has: path, Forest$"):
        resolve("part_with_names:Forrest", where=WHERE)
    with pytest.raises(PartError, match=r"has no 'Forest\.fit'"):
        resolve("part_with_names:Forest.fit", where=WHERE)


def test_the_protocol_of_a_teacher() -> None:
    class WithoutSave:
        def fit(self, rows: object, labels: object) -> None: ...
        def predict_proba(self, rows: object) -> None: ...

    class Complete(WithoutSave):
        def save(self, folder: Path) -> None: ...
        @classmethod
        def load(cls, folder: Path) -> Complete:
            return cls()

    assert not isinstance(WithoutSave(), Teacher)
    assert isinstance(Complete(), Teacher)


@pytest.mark.parametrize(
    ("tokens", "embeddings", "message"),
    [
        (["a", "b"], np.zeros((3, 2)), r"of 2 tokens has embeddings of shape \[3, 2\]"),
        (["a"], np.zeros(2), r"of 1 tokens has embeddings of shape \[2\]"),
        (["a", "a"], np.zeros((2, 2)), "names tokens more than once"),
        (["a"], np.full((1, 2), np.nan), "embeddings that are not finite"),
    ],
)
def test_an_invalid_text_encoder_is_refused(tokens: list[str], embeddings: np.ndarray, message: str) -> None:
    with pytest.raises(PartError, match=message):
        TextEncoderState(tokens, embeddings)


def test_importing_a_kind_without_a_module_fails() -> None:
    class Cold(Section):
        kind: Literal["cold"]

    class Module(Section):
        kind: Literal["module"]

    with pytest.raises(ModuleNotFoundError, match=r"stillhouse\.teachers\.cold"):
        import_kinds("stillhouse.teachers", Module | Cold)
