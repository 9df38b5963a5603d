"""`make docs`: the site is built without a warning, has a search, and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("sphinx") is None, reason="the extra `docs` is not installed: make docs"),
]


def build(sources: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "-c", str(sources / "docs"), *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    return subprocess.run([*command, str(sources), str(out)], capture_output=True, text=True, env=environment)


def test_the_site_is_whole(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path, "--keep-going")
    assert done.returncode == 0, done.stderr
    front = (tmp_path / "README.html").read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?:https?:)?//", front)
    assert "how-to/roll-back.html" in front and "reference/cli.html" in front
    assert "cooldown" in (tmp_path / "searchindex.js").read_text(encoding="utf-8")
    python = (tmp_path / "docs" / "reference" / "python.html").read_text(encoding="utf-8")
    assert 'id="stillhouse.watch"' in python and "Parameters" in python


@pytest.mark.parametrize("fault", ["[gone](gone.md)", "[gone](#gone)", "a page without a place"])
def test_a_dead_link_or_a_page_without_a_place_fails(tmp_path: Path, fault: str) -> None:
    for name in ("docs/conf.py", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    page = "[a](a.md) [b](b.md)" if "place" in fault else fault
    for name, text in {
        "README.md": "# Front\n\n[docs](docs/README.md)\n",
        "CONTRIBUTING.md": "# Contributing\n",
        "CHANGELOG.md": "# Changelog\n",
        "docs/README.md": "# Docs\n\n## Reference: look up\n\n| page | about |\n|---|---|\n| [A](a.md) | a |\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "docs" / "a.md").write_text(f"# A\n\n{page}\n", encoding="utf-8")
    if "place" in fault:
        (tmp_path / "docs" / "b.md").write_text("# B\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode != 0
    assert ("toctree" if "place" in fault else "gone") in done.stderr
