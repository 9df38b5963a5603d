"""`check`, `quarantine`, `import --dry-run` and `drift`: their output, and how errors end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse import cli, config, rehearsal
from stillhouse.config import load_file
from stillhouse.errors import ConfigError
from stillhouse.knowledge import KnowledgeBase
from tests.flows import toy

ROOT = Path(__file__).parent.parent
TOY = ROOT / "tests" / "flows" / "toy.yaml"
IMPORTING = "importing: {observation_id: id, observed_at: {column: when}}\n"


class Shown(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Shown]


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "agents"
    folder.mkdir()
    shutil.copy(TOY, folder)
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(folder))
    monkeypatch.setenv("COLUMNS", "200")
    for name in config.embedded_environment():
        monkeypatch.setenv(name, os.environ.get(name, config.embedded_environment()[name]))
    return folder


@pytest.fixture
def run(agents: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, in this process."""
    monkeypatch.setattr(cli.console, "_width", 200)  # what rich read of COLUMNS when it was made

    def run(*arguments: str | Path) -> Shown:
        monkeypatch.setattr(sys, "argv", ["stillhouse", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Shown(int(end.value.code or 0), *capsys.readouterr())

    return run


# --------------------------------------------------------------------------- check


@pytest.fixture
def no_short_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the short pass, which other tests run."""
    monkeypatch.setattr(rehearsal, "_short_pass", lambda config, labelled: iter([f"{len(labelled)} rows passed"]))


@pytest.mark.usefixtures("no_short_pass")
def test_check_takes_a_name_or_a_path_and_names_the_file(run: Run, agents: Path, tmp_path: Path) -> None:
    by_name, by_path = run("check", "toy"), run("check", agents / "toy.yaml")
    assert by_name == by_path and by_name.code == 0, by_name.err
    assert f"✓ {agents / 'toy.yaml'}: keys, units and ranges" in by_name.out
    assert "✓ data contract: all 1,680 rows keep it" in by_name.out
    assert "rows with outcomes a day: about 1,681 to learn from, 480 to judge on" in by_name.out
    assert (
        "promotion: with 480 rows in 96 clusters" in by_name.out
        and "the gate can prove no margin below ." in by_name.out
    )
    other = tmp_path / "draft [1].yml"
    other.write_text(TOY.read_text().replace("tests.flows.toy:observations", "tests.flows.toy:nothing"))
    wrong = run("check", other)
    assert wrong.code == 1 and f"{other}: observations.source: " in wrong.err and "agents/toy" not in wrong.err
    unknown = run("check", "tyo")
    assert unknown.code == 1 and "did you mean 'toy'?" in unknown.err
    absent = run("check", "nowhere/toy.yaml")
    assert absent.code == 1 and "nowhere/toy.yaml: cannot be read" in absent.err


@pytest.mark.usefixtures("no_short_pass")
@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        ("[north, south]", "[north, sudo]", ["break the data contract", "place: unknown value"]),
        (
            "a: {type: number, min: -20",
            "a: {type: number, min: 19",
            ["of 1680 rows", "are bad", "a: below 19 (1,6"],
        ),
        ("min_rows: 100", "min_rows: 100\n  volume: {max_per_day: 50}", ["break the data contract", "at most 50"]),
        ("min_train_rows: 500", "min_train_rows: 5000", ["windows.train", "1,681 rows", "`windows.min_train_rows`"]),
        ("min_rows: 100", "min_rows: 481", ["windows.test", "480 rows", "`observations.min_rows`"]),
        ("test: 4d, current: 4d", "test: 5d, current: 2h", ["windows.current", "`observations.min_rows`"]),
        ("folds: 3", "folds: 3, validation_every: 15", ["windows.train", "every 15th day", "distillation.validation"]),
    ],
)
def test_ready_means_that_a_bootstrap_can_succeed(
    run: Run, agents: Path, right: str, wrong: str, expected: list[str]
) -> None:
    text = (agents / "toy.yaml").read_text()
    assert right in text
    (agents / "toy.yaml").write_text(text.replace(right, wrong))
    shown = run("check", "toy")
    assert shown.code == 1 and "is ready" not in shown.out
    assert all(part in shown.err for part in expected), shown.err


@pytest.mark.usefixtures("no_short_pass")
def test_check_reports_rows_for_quarantine_and_a_margin_that_cannot_be_proven(run: Run, agents: Path) -> None:
    text = (agents / "toy.yaml").read_text().replace("b: {type: number, min: -20", "b: {type: number, min: -1.9")
    (agents / "toy.yaml").write_text(text.replace("non_inferiority_margin: 0.02", "non_inferiority_margin: 0.001"))
    shown = run("check", "toy")
    assert shown.code == 0, shown.err
    assert "rows would be set aside: b: below -1.9 (" in shown.out
    assert "and `promotion.non_inferiority_margin` is 0.001: a challenger that is no better would" in shown.out
    assert "Lengthen `windows.test` to about " in shown.out and "w, or raise the margin" in shown.out


def test_a_remote_teacher_is_queried_about_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def __init__(self, local: bool) -> None:
            self.local, self.asked = local, list[int]()

        def ask(self, rows: pd.DataFrame) -> Any:
            self.asked.append(len(rows))
            return rows[["a", "b"]].to_numpy()

    rows = toy.observations(toy.BEGIN, toy.BEGIN + pd.Timedelta(days=3))
    remote, local = Slow(local=False), Slow(local=True)
    assert len(rehearsal._query_sample(remote, rows)[0]) == 3 and remote.asked == [3]  # type: ignore[arg-type]
    probs, _ = rehearsal._query_sample(local, rows)  # type: ignore[arg-type]
    assert local.asked[:2] == [8, 8] and local.asked[2] > 8 and local.asked[3] == 1 and len(probs) <= len(rows)
    with monkeypatch.context() as patched:
        patched.setattr(rehearsal, "_TEACHER_SECONDS", 0.0)
        assert len(rehearsal._query_sample(local, rows)[0]) == 8  # type: ignore[arg-type]


# --------------------------------------------------------------------------- import and quarantine


@pytest.fixture
def log(agents: Path, tmp_path: Path) -> Path:
    file = agents / "toy.yaml"
    file.write_text(file.read_text() + IMPORTING)
    rows = [f"x{i},2024-01-01T00:0{i}:00Z,1,1,1,north" for i in range(5)]
    (tmp_path / "log.csv").write_text(
        "\n".join(["id,when,a,b,c,place", *rows, "y,2024-01-01T00:00Z,one,1,1,north"]) + "\n"
    )
    return tmp_path / "log.csv"


def test_a_dry_run_reports_what_would_happen(run: Run, log: Path, agents: Path) -> None:
    dry = run("import", "toy", "--dry-run", log)
    assert dry.code == 0, dry.err
    assert "of its first 6 rows, the import would add 5 observations, would put 1 row into quarantine" in dry.out
    assert "log.csv:7: a: 'one' is no number" in dry.out and "nothing was written" in dry.out
    assert run("import", "toy", log).code == 0
    again = run("import", "toy", "--dry-run", log)
    assert again.code == 0 and "would add 0 observations, would leave out 5 that are there already" in again.out
    unusable = log.with_name("bad.csv")
    unusable.write_text("id,when,a,b,c,place\nx,yesterday,1,1,1,north\n")
    nothing = run("import", "toy", "--dry-run", unusable)
    assert nothing.code == 1 and "would add 0 observations, would put 1 row into quarantine" in nothing.out
    assert run("import", "toy", unusable).code == 1
    assert run("import", "toy", "--dry-run", unusable, log).code == 0
    unusable.write_text("id,when,a,b,c,place\n")
    assert [run("import", "toy", *dry, unusable).code for dry in (["--dry-run"], [])] == [1, 1]


def test_a_dry_run_counts_outcomes_that_are_there_as_the_import_does(run: Run, log: Path, agents: Path) -> None:
    file = agents / "toy.yaml"
    file.write_text(
        file.read_text().replace("{column: when}}", "when, outcome: {action: place}, actions: {north: go}}")
    )
    assert "would add 5 observations, 5 outcomes" in run("import", "toy", "--dry-run", log).out
    assert run("import", "toy", log).code == 0
    assert "would add 0 observations, 0 outcomes, would leave out 5" in run("import", "toy", "--dry-run", log).out


def test_quarantine_shows_rows_reasons_and_counts(run: Run, log: Path) -> None:
    assert "no row of agent 'toy' is in quarantine" in run("quarantine", "toy").out
    assert run("import", "toy", log).code == 0
    base = KnowledgeBase(config.load("toy"))
    times = pd.date_range("2024-01-02", periods=3, freq="h", tz="UTC")
    reasons = [["a: above 20"], ["a: above 20", "place: unknown value '[/INST]\\n'"], ["c: missing"]]
    base.tables.append(
        "quarantine", pd.DataFrame({"observation_id": list("pqr"), "observed_at": times, "reasons": reasons}), batch="b"
    )
    shown = run("quarantine", "toy", "--last", "2")
    assert shown.code == 0, shown.err
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert lines[1:3] == [
        "2024-01-02 02:00 r c: missing",
        "2024-01-02 01:00 q a: above 20; place: unknown value '[/INST]\\n'",
    ]
    assert "2 a above 20" in lines and "1 place unknown value" in lines and "1 a is no number" in lines
    assert lines[-1].startswith("4 rows in quarantine, of 2024-01-01 00:00 to 2024-01-02 02:00")


# --------------------------------------------------------------------------- drift


def test_drift_shows_names_and_values_as_they_are(run: Run, tmp_path: Path) -> None:
    name = "price[eur] $x$\n|:warning:"
    pq.write_table(pa.table({name: ["a", "b"] * 50}), tmp_path / "before.parquet")
    pq.write_table(pa.table({name: ["a", "[/INST]\x1b[31m\u202e"] * 50}), tmp_path / "after [1].parquet")
    shown = run("drift", tmp_path / "before.parquet", tmp_path / "after [1].parquet")
    assert shown.code == 0, shown.err
    assert "price[eur] $x$\\n|:warning:" in shown.out and "[/INST]\\x1b[31m\\u202e" in shown.out
    (tmp_path / "text.parquet").write_text("no Parquet")
    wrong = run("drift", tmp_path / "before.parquet", tmp_path / "text.parquet")
    assert wrong.code == 1 and "text.parquet cannot be read as Parquet" in wrong.err
    assert run("drift", tmp_path / "before.parquet", tmp_path / "absent").code == 2


def test_drift_of_texts_in_a_folder(run: Run, tmp_path: Path) -> None:
    for part, words in (("month=1", "one two"), ("month=2", "one two three")):
        (tmp_path / "all" / part).mkdir(parents=True)
        pq.write_table(pa.table({"text": [words] * 50}), tmp_path / "all" / part / "a.parquet")
    shown = run("drift", tmp_path / "all", tmp_path / "all", "--text", "text")
    assert shown.code == 0, shown.err
    assert "text: words" in shown.out and "month" in shown.out and "100 rows before, 100 now" in shown.out


# --------------------------------------------------------------------------- homes, agents and errors


@pytest.mark.parametrize(
    "name", ["a b", "a#b", "ünï-日本", "q'uo\"te", "{braces}", "trailing.", "a&b=c", "a:b@c", "~", "-x"]
)
def test_a_home_of_any_usual_name_works(name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / name))
    settings = load_file(TOY)
    rows = toy.observations(settings.observations.since, settings.observations.since + pd.Timedelta(days=1))
    KnowledgeBase(settings).append_observations(rows, batch="b")
    assert len(KnowledgeBase(settings).read("observations")) == len(rows)
    shown = run("history", "toy")
    assert shown.code == 0 and "nothing has been decided" in shown.out, shown.err
    assert not {path.name for path in tmp_path.iterdir()} - {name, "agents", "home"}


@pytest.mark.parametrize("name", ["a?b", "a%20b", "[x]", "a|b", "a\\b", "two\nlines", "\x1b[31m", "\u202ex", "x" * 300])
def test_an_unusable_home_is_refused_at_once(
    name: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / name))
    with pytest.raises(ConfigError, match="STILLHOUSE_HOME"):
        config.home()
    shown = run("history", "toy")
    assert shown.code == 1 and "STILLHOUSE_HOME" in shown.err and "name another" in shown.err
    assert len(shown.err.splitlines()) == 1 and "\x1b[31m\n" not in shown.err and "\u202e" not in shown.err
    assert not {path.name for path in tmp_path.iterdir()} - {"agents", "home"}


def test_paths_that_are_not_folders(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for variable in ("STILLHOUSE_HOME", "STILLHOUSE_AGENTS"):
        for wrong in ("file", "file/below", "loop", "\udcff"):
            with monkeypatch.context() as patched:
                patched.setenv(variable, str(tmp_path / wrong))
                shown = run("history", "toy")
                assert shown.code == 1 and "Traceback" not in shown.err, shown
                assert variable in shown.err or str(tmp_path / wrong) in shown.err
    monkeypatch.setenv("STILLHOUSE_HOME", "")
    assert config.home() == Path.cwd() / ".stillhouse"
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "link"))
    assert config.home() == tmp_path / "real"


def test_errors_end_without_a_traceback(run: Run, agents: Path, tmp_path: Path) -> None:
    (agents / "broken.yaml").write_text("agent: [")
    (agents / "latin.yaml").write_bytes(b"agent: caf\xe9")
    (agents / "folder.yaml").mkdir()
    for arguments in (
        ("status", "nobody"),
        ("history", "../toy"),
        ("teachers", "[/x]"),
        ("quarantine", "Toy"),
        ("check", ""),
        ("check", "broken"),
        ("check", "latin"),
        ("check", "folder"),
        ("check", agents),
        ("history", "a" * 300),
        ("import", "toy", tmp_path / "absent.csv"),
        ("import", "toy", tmp_path),
        ("check", "toy\x00"),
        ("contract", "toy", "--output", tmp_path / "no" / "such" / "folder.yaml"),
        ("history", "toy", "--last", "0"),
        ("check", "toy", "--rows", "1"),
        ("drift", "x"),
        ("nonsense",),
    ):
        shown = run(*arguments)
        assert shown.code in (1, 2) and shown.err and "Traceback" not in shown.err, (arguments, shown)


def test_a_closed_pipe_and_an_interrupt_are_no_tracebacks(agents: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    loop = (
        "import sys; from stillhouse import cli; cli.console.file = None\n"
        "@cli.app.command()\ndef loop():\n    for i in range(100000): cli.console.print(f'✓ {i}')\n"
        "@cli.app.command()\ndef stop(): raise KeyboardInterrupt\ncli.main()"
    )
    piped = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$0" loop | head -1', loop],
        env=environment,
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert "\\u2713 0" in piped.stdout and piped.stderr == ""
    stopped = subprocess.run(
        [sys.executable, "-c", loop, "stop"], env=environment, cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert stopped.returncode in (1, 130) and "Traceback" not in stopped.stderr
