"""Python beside an agent file: which file is found, under which name, and what is refused."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from stillhouse.agent_modules import find_beside, import_beside, name_of
from stillhouse.config import load_file
from stillhouse.errors import PartError
from stillhouse.parts import resolve
from stillhouse.quality import get_measure
from stillhouse.records import Window
from stillhouse.teachers import ensemble
from tests.agents import agent_file

WHERE = "toy.yaml: observations.source"
TEACHER = """\
from pathlib import Path

from .shared import RATE


class Rate:
    def fit(self, rows, labels):
        self.rate = RATE

    def predict_proba(self, rows):
        return [[1 - self.rate, self.rate]] * len(rows)

    def save(self, folder):
        (folder / "rate.txt").write_text(str(self.rate))

    @classmethod
    def load(cls, folder):
        teacher = cls()
        teacher.rate = float((Path(folder) / "rate.txt").read_text())
        return teacher


def score(probs, labels, rows):
    return probs[:, 1]
"""


@pytest.fixture(autouse=True)
def _forget_modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("stillhouse.agent_modules.", "wave")):
            del sys.modules[name]


def write(folder: Path, **texts: str) -> Path:
    """Files ``<name>.py`` in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_two_folders_have_a_module_of_the_same_name(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, tickets=f"def rows(): return {name!r}") for name in ("one", "two"))
    before = list(sys.path)
    assert resolve("tickets:rows", folder=one)() == "one"
    assert resolve("tickets:rows", folder=two)() == "two"
    assert "tickets" not in sys.modules and sys.path == before
    assert resolve("tickets:rows", folder=one).__module__ == f"{name_of(one)}.tickets"


def test_a_module_beside_the_agent_file_comes_before_an_installed_one_and_hides_it_from_nobody(tmp_path: Path) -> None:
    folder = write(tmp_path, wave="import wave\ndef own(): return wave.open")
    assert resolve("wave:own", folder=folder)() is __import__("wave").open
    assert resolve("wave:open", folder=tmp_path / "elsewhere") is __import__("wave").open
    assert resolve("math:sqrt", folder=folder)(4) == 2  # not there: the installed one


def test_packages_and_their_modules(tmp_path: Path) -> None:
    write(tmp_path / "shop", __init__="SIZE = 3", rows="from . import SIZE\nfrom ..other import MORE\n")
    write(tmp_path, other="MORE = 4")
    assert resolve("shop.rows:SIZE", folder=tmp_path) == 3 and resolve("shop.rows:MORE", folder=tmp_path) == 4
    assert find_beside(tmp_path, "shop") == tmp_path / "shop" / "__init__.py"
    assert find_beside(tmp_path, "shop.none") is None


def test_files_of_a_folder_import_each_other_with_a_dot(tmp_path: Path) -> None:
    write(tmp_path, parts="import helper_of_mine", helper_of_mine="")
    with pytest.raises(PartError, match=r"import each other with a dot: `from \. import helper_of_mine`"):
        resolve("parts:rows", where=WHERE, folder=tmp_path)


def test_what_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, parts="def rows(): ...")
    with pytest.raises(PartError, match=r"'parts' has no 'row'; it has: rows$"):
        resolve("parts:row", folder=tmp_path)
    with pytest.raises(PartError, match="put the module beside the agent file, or run from the folder"):
        resolve("no_such_module:rows", folder=tmp_path)


@pytest.mark.parametrize("place", [".", "parts.py", "__pycache__"])
def test_python_that_everybody_may_change_is_refused(tmp_path: Path, place: str) -> None:
    write(tmp_path, parts="def rows(): ...")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / place).chmod(0o777)
    with pytest.raises(PartError, match=r"every user may write to it: .*chmod o-w") as caught:
        resolve("parts:rows", where=WHERE, folder=tmp_path)
    assert str(caught.value).startswith(f"{WHERE}: 'parts:rows': ")
    (tmp_path / place).chmod(0o755)
    assert resolve("parts:rows", where=WHERE, folder=tmp_path)


def test_python_of_another_user_is_refused_and_root_s_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, parts="def rows(): ...")
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner:
        with pytest.raises(PartError, match=rf"belongs to another user \(uid {owner}\)"):
            resolve("parts:rows", folder=tmp_path)
    else:
        assert resolve("parts:rows", folder=tmp_path)
        os.chown(tmp_path / "parts.py", 12345, -1)
        sys.modules.pop(f"{name_of(tmp_path)}.parts")
        with pytest.raises(PartError, match=r"parts\.py: belongs to another user \(uid 12345\)"):
            resolve("parts:rows", folder=tmp_path)


def test_another_process_unpickles_an_object_by_the_name_of_its_module(tmp_path: Path) -> None:
    folder = write(tmp_path / "a folder é", tickets="class Ticket:\n    def __init__(self, size): self.size = size")
    data = pickle.dumps(resolve("tickets:Ticket", folder=folder)(7))
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).size)"
    shown = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, cwd="/", check=True)
    assert shown.stdout.strip() == b"7"


def test_a_teacher_and_a_score_beside_the_agent_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "anywhere", parts=TEACHER, shared="RATE = 0.25")
    quality = {"own": {"target": "parts:score", "name": "gain", "low": 0, "high": 1, "better": "higher"}}
    teachers = [{"kind": "python", "name": "rate", "target": "parts:Rate"}]
    (folder / "toy.yaml").write_text(agent_file(teachers=teachers, quality=quality))
    monkeypatch.chdir(tmp_path)
    settings = load_file(Path("anywhere") / "toy.yaml")
    assert settings.folder == folder
    monkeypatch.chdir("/")
    start = pd.Timestamp("2026-01-01T00:00:00Z")
    rows = pd.DataFrame(
        {"observed_at": [start] * 4, "origin": "EWR", "temp": 1.0, "wind": 2.0, "outcome": [0, 1, 0, 1]}
    )
    window = Window(name="w", start=start, end=start + pd.Timedelta(days=1))
    ensemble.fit(settings, rows, window, tmp_path / "teacher")
    copy = pickle.loads(pickle.dumps(settings))  # noqa: S301 — as a worker process gets it
    loaded = ensemble.load(tmp_path / "teacher", copy)
    assert loaded.predict_proba(rows)[:, 1].tolist() == [0.25] * 4
    measure = get_measure(settings)
    assert measure.points(loaded.predict_proba(rows), rows["outcome"].to_numpy(), rows) == 0.25


def test_the_name_of_a_folder_says_which_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "Größe 1", parts="")
    assert Path(str(import_beside(folder, "parts").__file__)) == folder / "parts.py"
    assert import_beside(folder, "parts").__name__.isidentifier() is False  # it has dots …
    assert all(part.isidentifier() for part in name_of(folder).split("."))  # … between identifiers
