"""``stillhouse compress`` on foreign models: one MLflow for all of them, small searches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mlflow
import mlflow.onnx
import mlflow.pytorch
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from mlflow.models import ModelSignature
from mlflow.types.schema import Schema, TensorSpec
from torch import nn

from stillhouse import cli, compressing
from stillhouse.errors import DataError
from stillhouse.records import Frontier
from stillhouse.registry.experiment import open_experiment
from stillhouse.registry.runs import Runs
from tests.compress.foreign.test_target import graph, with_hidden

DRAW = np.random.default_rng(0)
ROWS = DRAW.normal(size=(240, 6)).astype(np.float32)
LABELS = (ROWS @ DRAW.normal(size=6) > 0).astype(np.int64)
SHORT = ("--time", "20s", "--candidates", "5", "--steps", "prune_units,int8_dynamic")


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A STILLHOUSE_HOME whose MLflow has ``net`` (torch, 64 rows as its example), ``graph`` (ONNX) and ``rule``."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLHOUSE_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        theirs = open_experiment("theirs")
        patch.setenv("MLFLOW_TRACKING_URI", theirs.uri)
        mlflow.set_tracking_uri(theirs.uri)
        mlflow.set_experiment(experiment_id=theirs.experiment_id)
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 2))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(60):
            loss = nn.functional.cross_entropy(network(torch.from_numpy(ROWS)), torch.from_numpy(LABELS))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        mlflow.pytorch.log_model(
            network.eval(),
            name="net",
            signature=ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, 6))])),
            input_example=ROWS[:64],
            serialization_format="pt2",
            pip_requirements=["torch"],
            registered_model_name="net",
        )
        mlflow.onnx.log_model(
            onnx.load(graph(home / "graph.onnx")),
            name="graph",
            input_example=ROWS[:5],
            pip_requirements=["onnxruntime"],
            registered_model_name="graph",
        )
        mlflow.onnx.log_model(
            onnx.load(with_hidden(home / "two.onnx")),
            name="two",
            pip_requirements=["onnxruntime"],
            registered_model_name="two",
        )
        theirs.client.set_registered_model_alias("net", "champion", "1")
        mlflow.set_tracking_uri(None)
    return home


@pytest.fixture
def run(store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("STILLHOUSE_HOME", str(store))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "set to be unset")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(cli.console, "_width", 200)

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["stillhouse", "compress", *map(str, arguments)])
        monkeypatch.setattr(cli.console, "_file", sys.stdout)
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capfd.readouterr()
        return Answer(int(left.value.code or 0), " ".join(out.split()), " ".join(err.split()))

    return run


def test_a_torch_module_with_labels(run: Run, store: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", input=ROWS, labels=LABELS)
    folder = tmp_path / "small"
    printed = run(
        "models:/net@champion",
        "--rows",
        tmp_path / "rows.npz",
        "--max-bytes",
        9000,
        "--max-quality-loss",
        0.1,
        "--output",
        folder,
        *SHORT,
    )
    assert printed.code == 0, printed
    assert "the smallest within 10 points and 9,000 bytes" in printed.out and "100.0%" in printed.out
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"] == "models:/net/1" and manifest["cpu"]["name"]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 9000

    experiment = open_experiment("compress-net")
    parent, *_ = experiment.client.search_runs([experiment.experiment_id], "tags.role = 'compression'")
    assert parent.data.tags["verdict"] == "fits" and parent.data.tags["source"] == "models:/net/1"
    assert parent.data.tags["why"] in printed.out and parent.info.status == "FINISHED"
    files = {file.path for file in experiment.client.list_artifacts(parent.info.run_id)}
    assert {"compression.json", "compression", "figures"} <= files
    frontier = Runs(experiment).read_record(parent.info.run_id, "compression.json", Frontier)
    assert frontier is not None
    filter_text = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    nested = {
        nested_run.info.run_name: nested_run
        for nested_run in experiment.client.search_runs([experiment.experiment_id], filter_text)
    }
    assert set(nested) == {nested_run.name for nested_run in frontier.candidates}
    chosen = nested[frontier.chosen]
    assert chosen.data.metrics["bytes"] <= 9000 and "compression/p95_ms" in chosen.data.metrics
    assert chosen.data.tags["chosen"] == "True"

    mlflow.set_tracking_uri(experiment.uri)
    loaded = mlflow.pyfunc.load_model(parent.data.tags["chosen_model"])
    mlflow.set_tracking_uri(None)
    answers = loaded.predict({"input": ROWS})["logits"]
    assert (answers.argmax(axis=1) == LABELS).mean() > 0.8


def test_the_logged_example_is_enough_and_a_second_search_goes_on(run: Run) -> None:
    first = run("models:/net/1", "--no-log", *SHORT)
    assert first.code == 0 and "in MLflow" not in first.out
    second = run("models:/net/1", "--no-log", "--max-bytes", 10**6, *SHORT)
    assert second.code == 0, second  # every candidate is read, none is made


def test_an_onnx_graph_with_a_table_of_rows(run: Run, tmp_path: Path) -> None:
    table = pd.DataFrame(ROWS, columns=list("abcdef")).assign(label=LABELS)
    table.to_parquet(tmp_path / "rows.parquet")
    printed = run(
        "models:/graph/1",
        "--rows",
        tmp_path / "rows.parquet",
        "--labels",
        "label",
        "--experiment",
        "mine",
        "--time",
        "10s",
        "--candidates",
        4,
    )
    assert printed.code == 0, printed
    experiment = open_experiment("mine")
    parent, *_ = experiment.client.search_runs([experiment.experiment_id], "tags.role = 'compression'")
    assert parent.data.tags["source"] == "models:/graph/1"


def test_several_outputs_are_asked_about_and_named(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=ROWS)
    few = ("--rows", tmp_path / "rows.npz", "--no-log", "--time", "5s", "--candidates", 2)
    printed = run("models:/two/1", *few)
    assert printed.code == 1 and "c or logits may be what decides" in printed.err and "--output logits" in printed.err
    folder = tmp_path / "small"
    named = run("models:/two/1", "--output", "logits", "--output", folder, *few)
    assert named.code == 0, named
    assert "the output logits is compressed, of c, logits" in named.out
    assert "quality is the share of validation rows with the same decision as the float32 model" in named.out
    assert json.loads((folder / "manifest.json").read_text())["output"] == "logits"
    twice = run("models:/two/1", "--output", folder / "a", "--output", folder / "b", *few)
    assert twice.code == 1 and "name one folder, and one of the model's outputs (c, logits)" in twice.err


def test_nothing_fits(run: Run, tmp_path: Path) -> None:
    printed = run("models:/net/1", "--max-bytes", 100, "--output", tmp_path / "small", "--no-log", *SHORT)
    assert printed.code == 1
    assert "nothing fits: it would take a max_bytes of" in printed.out
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("models:/net/9",), "version=9"),
        (("net",), "is no model's address in MLflow"),
        (("models:/graph/1",), "was logged with an input example of 5 rows"),
        (("models:/net/1", "--rows", "nowhere.npz"), "nowhere.npz: there is no such file"),
        (("models:/net/1", "--rows", __file__), "rows are read from .npy, .npz, .parquet and .csv"),
        (("models:/net/1", "--labels", "kind"), "the rows have no such column, and there is no such file"),
        (("models:/net/1", "--steps", "squeeze"), "--steps squeeze: input should be 'int8_dynamic'"),
        (("models:/net/1", "--time", "5 parsecs"), "--time 5 parsecs: '5 parsecs' is not a duration"),
        (("models:/net/1", "--max-bytes", "0"), "--max-bytes 0"),
        (("models:/net/1", "--max-quality-loss", "2"), "--max-quality-loss 2"),
        (("models:/net/1", "--output", "."), "exists already, and nothing is overwritten"),
    ],
)
def test_mistakes_are_told_in_a_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    answer = run(*arguments, "--no-log")
    assert answer.code == 1 and message in answer.err and "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:, :4], "the rows of input input are [240, 4], and the model reads input float32 [n, 6]"),
        (ROWS[:20], "20 rows are too few"),
    ],
)
def test_rows_that_do_not_fit(run: Run, tmp_path: Path, rows: np.ndarray, message: str) -> None:
    np.save(tmp_path / "rows.npy", rows)
    answer = run("models:/net/1", "--rows", tmp_path / "rows.npy", "--no-log")
    assert answer.code == 1 and message in answer.err


def test_pickled_rows_are_not_read(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([{"a": 1}], dtype=object))
    answer = run("models:/net/1", "--rows", tmp_path / "rows.npy", "--no-log")
    assert answer.code == 1 and "cannot be read as .npy" in answer.err


def test_rows_of_csv_are_what_stands_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b,code,label,\n1,0.5,NA,0,\n2,,null,1,\n3,1e3,1.0,1,\n")
    rows, labels = compressing.read_rows(path, "label", None)
    assert rows["a"].tolist() == [1, 2, 3] and rows["a"].dtype == "int64" and labels.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(rows["b"], [0.5, np.nan, 1000])
    assert rows["code"].tolist() == ["NA", "null", "1.0"] and list(rows.columns) == ["a", "b", "code"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2,\n", "line 2: has 3 values, and there are 2 columns"),
        ("a;b\n1;2,5\n", "separated by semicolons, and commas are expected"),
        ("a;b\n1;2\n", "separated by semicolons, and commas are expected"),
        ("a, b\n1,2\n", "blanks around ' b'"),
        ("a,a\n1,2\n", "more than one column 'a'"),
    ],
)
def test_rows_of_csv_never_move(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        compressing.read_rows(path, None, None)
