"""A result belongs to a commit and records how it was measured."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import pages, report


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, whose benchmarks write their results into it."""
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "engine.py").write_text("committed")
    (tmp_path / "README.md").write_text("committed")
    monkeypatch.setattr(report, "RESULTS", results)
    monkeypatch.setattr("sys.argv", ["loop", "--seeds", "3", "--home", "/somewhere/of/mine"])
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_a_result_holds_arguments_commit_flags_and_load(repository: Path) -> None:
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=repository, text=True).strip()
    run = report.begin("loop", writes_result=True)
    (repository / "engine.py").write_text("edited while it ran")
    run.write("a claim", [report.Goal("minutes", 5, "lower", 4, 3, 6)], {}, ["numpy"])
    result = json.loads((report.RESULTS / "loop.json").read_text())
    assert result["arguments"] == ["--seeds", "3", "--home", "mine"]
    assert result["commit"] == commit and result["changed_during_run"] == ["engine.py"]
    assert set(result["machine"]) == {"cpu", "cores", "flags", "load"} and result["goals"][0]["met"]
    circumstances = pages.circumstances(result)
    assert f"python -m benchmarks.loop --seeds 3 --home mine` at commit {commit}" in circumstances
    assert "changed during the run: engine.py" in circumstances and "load" in circumstances
    assert all(flag in circumstances for flag in result["machine"]["flags"])


def test_a_changed_tree_has_no_result(repository: Path) -> None:
    (repository / "engine.py").write_text("not committed")
    (repository / "new.py").write_text("not known to git")
    with pytest.raises(SystemExit, match=r"would belong to no commit: engine.py, new.py.*--quick"):
        report.begin("loop", writes_result=True)
    report.begin("loop", writes_result=False)


def test_results_and_generated_pages_may_differ(repository: Path) -> None:
    (repository / "README.md").write_text("figures of another benchmark")
    (report.RESULTS / "other.json").write_text("{}")
    report.begin("loop", writes_result=True)


def test_a_folder_without_a_repository_has_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    with pytest.raises(SystemExit, match="no git repository"):
        report.begin("loop", writes_result=True)
