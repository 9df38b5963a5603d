"""Refresh runs: opened, filled, closed, and taken up again after a crash."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from stillhouse.errors import RegistryError
from stillhouse.records import Certificate, Verdict
from stillhouse.registry import Lineage, Registry
from stillhouse.registry.connection import connect

from .conftest import certificate, scorecard, verdict, window


def status(registry: Registry, run_id: str) -> str:
    return str(registry.client.get_run(run_id).info.status)


def test_a_refresh_from_opening_to_closing(registry: Registry) -> None:
    run_id, earlier = registry.runs.open_refresh("r1", tags={"cause": "v9", "none": None}, params={"temperature": 2.0})
    assert earlier is None
    assert registry.runs.finished_refresh("r1") is None
    registry.runs.log(run_id, metrics={"loss": 0.4, "seconds": 3})
    registry.runs.log_verdict(run_id, certificate("r1"), verdict())
    assert registry.runs.finished_refresh("r1") is None
    registry.runs.close_refresh(run_id)

    assert registry.runs.finished_refresh("r1") == verdict()
    assert registry.runs.finished_refresh("r2") is None
    assert registry.runs.read_record(run_id, "certificate.json", Certificate) == certificate("r1")
    run = registry.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"temperature": "2.0"}
    assert run.data.metrics == {"loss": 0.4, "seconds": 3}
    assert run.data.tags["cause"] == "v9" and run.data.tags["result"] == "promoted"
    assert "none" not in run.data.tags


def test_unfinished_without_verdict_is_killed(registry: Registry) -> None:
    first, _ = registry.runs.open_refresh("r1", tags={}, params={})
    nested = registry.client.create_run(registry.experiment_id, tags={"mlflow.parentRunId": first}).info.run_id
    second, earlier = registry.runs.open_refresh("r1", tags={}, params={})
    assert second != first and earlier is None
    assert (status(registry, first), status(registry, nested)) == ("KILLED", "KILLED")
    assert "unfinished" in registry.client.get_run(first).data.tags["killed"]
    assert status(registry, second) == "RUNNING"


def test_another_running_refresh_is_killed(registry: Registry) -> None:
    """Only one refresh may run at a time, so the process of any other must have died."""
    first, _ = registry.runs.open_refresh("r1", tags={}, params={})
    nested = registry.client.create_run(registry.experiment_id, tags={"mlflow.parentRunId": first}).info.run_id
    done, _ = registry.runs.open_refresh("r2", tags={}, params={})
    registry.runs.close_refresh(done)
    registry.runs.open_refresh("r3", tags={}, params={})
    assert [status(registry, run) for run in (first, nested, done)] == ["KILLED", "KILLED", "FINISHED"]


@pytest.mark.parametrize("failed", [None, "the promotion could not reach MLflow"])
def test_unfinished_with_verdict_is_resumed(registry: Registry, failed: str | None) -> None:
    first, _ = registry.runs.open_refresh("r1", tags={}, params={})
    registry.runs.log_verdict(first, certificate("r1"), verdict())
    if failed:
        registry.runs.close_refresh(first, failed=failed)
    again, earlier = registry.runs.open_refresh("r1", tags={}, params={})
    assert (again, earlier) == (first, verdict())
    assert status(registry, first) == "RUNNING"


def test_a_truncated_verdict_is_none(registry: Registry) -> None:
    first, _ = registry.runs.open_refresh("r1", tags={}, params={})
    registry.client.log_text(first, verdict().model_dump_json()[:80], "verdict.json")
    second, earlier = registry.runs.open_refresh("r1", tags={}, params={})
    assert second != first and earlier is None


def test_close_as_failed_says_why(registry: Registry) -> None:
    run_id, _ = registry.runs.open_refresh("r1", tags={}, params={})
    registry.runs.close_refresh(run_id, failed="the teacher did not converge")
    run = registry.client.get_run(run_id)
    assert (run.info.status, run.data.tags["failed"]) == ("FAILED", "the teacher did not converge")


def test_records_and_figures_are_artifacts(registry: Registry) -> None:
    run_id, _ = registry.runs.open_refresh("r1", tags={}, params={})
    registry.runs.log_record(run_id, verdict(), "drift/report.json")
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    registry.runs.log_files(run_id, {"drift/wind.png": figure})
    plt.close(figure)
    assert {file.path for file in registry.client.list_artifacts(run_id, "drift")} == {
        "drift/report.json",
        "drift/wind.png",
    }
    assert registry.runs.read_record(run_id, "drift/report.json", Verdict) == verdict()
    assert registry.runs.read_record(run_id, "drift/none.json", Verdict) is None


def test_log_writes_all_contents_of_a_run(registry: Registry) -> None:
    run_id, _ = registry.runs.open_refresh("r1", tags={}, params={})
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    registry.runs.log(
        run_id,
        files={"drift/report.json": verdict(), "figures/wind.png": figure, "figures/wind.svg": figure, "form": b"12"},
        metrics={"hypervolume": 0.5},
        history=[{"loss": 0.9}, {"loss": 0.4}],
        points=[(window("train").start, 7, {"psi": 0.1})],
        params={"rows": 900},
        tags={"result": "hold", "none": None},
    )
    plt.close(figure)
    run = registry.client.get_run(run_id).data
    assert (run.metrics, run.params) == ({"hypervolume": 0.5, "loss": 0.4, "psi": 0.1}, {"rows": "900"})
    assert run.tags["result"] == "hold" and "none" not in run.tags
    steps = [(metric.step, metric.value) for metric in registry.client.get_metric_history(run_id, "loss")]
    assert steps == [(1, 0.9), (2, 0.4)]
    [point] = registry.client.get_metric_history(run_id, "psi")
    assert (point.step, point.timestamp) == (7, window("train").start.timestamp() * 1000)
    assert registry.runs.read_record(run_id, "drift/report.json", Verdict) == verdict()
    assert registry.runs.read_file(run_id, "form") == b"12"
    assert registry.runs.read_file(run_id, "figures/wind.png").startswith(b"\x89PNG")
    assert b"<svg" in registry.runs.read_file(run_id, "figures/wind.svg")
    with pytest.raises(RegistryError, match=r"has no artifact figures/none.png"):
        registry.runs.read_file(run_id, "figures/none.png")
    registry.runs.log_files(run_id, {})
    for outside in ("../of/it", "/etc/of/it", "a/../../b"):
        with pytest.raises(RegistryError, match="leads out of the run's files"):
            registry.runs.log_files(run_id, {outside: b"x"})


def test_more_than_mlflow_accepts_in_one_call_is_logged_in_several(registry: Registry) -> None:
    run_id, _ = registry.runs.open_refresh("r1", tags={}, params={f"p{number}": number for number in range(150)})
    history = [{f"m{number}": float(step) for number in range(70)} for step in range(20)]
    registry.runs.log(run_id, history=history, tags={f"t{number}": number for number in range(120)})
    run = registry.client.get_run(run_id).data
    assert (len(run.params), run.tags["t119"]) == (150, "119")
    assert len(run.metrics) == 70 and len(registry.client.get_metric_history(run_id, "m69")) == 20


def test_a_table_is_an_artifact_that_comes_back(registry: Registry) -> None:
    run_id, _ = registry.runs.open_refresh("r1", tags={}, params={})
    table = {"candidate": ("fp32", "int8"), "": ["", "chosen"], "quality": [0.8, None]}
    registry.runs.log_table(run_id, table, "compression/candidates.json")
    stored = json.loads(Path(registry.client.download_artifacts(run_id, "compression/candidates.json")).read_text())
    assert stored == {"columns": ["candidate", "", "quality"], "data": [["fp32", "", 0.8], ["int8", "chosen", None]]}


def test_a_window_is_a_dataset_and_cheap(registry: Registry) -> None:
    run_id, _ = registry.runs.open_refresh("r1", tags={}, params={})
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(100_000, 20)), columns=[f"c{i}" for i in range(20)])
    rows["origin"] = "EWR"
    rows["observed_at"] = pd.Timestamp("2013-01-01", tz="UTC")
    rows["said"] = [[0.5, 0.5]] * len(rows)
    registry.runs.log_window(run_id, window("train"), rows, "train")
    registry.runs.log_window(run_id, window("test"), rows, "test")

    train, test = sorted(registry.client.get_run(run_id).inputs.dataset_inputs, key=lambda i: i.dataset.name)[::-1]
    assert (train.tags[0].value, test.tags[0].value) == ("train", "test")
    source = json.loads(train.dataset.source)
    assert source["versions"] == {"observations": 4, "outcomes": 2}
    assert source["path"].endswith("home/knowledge/flights")
    assert json.loads(train.dataset.profile)["num_rows"] == 100_000
    assert train.dataset.digest != test.dataset.digest


def test_a_student_that_cannot_be_written_is_marked_failed(registry: Registry) -> None:
    class Sorter(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum().item() > 0 else -x  # cannot be traced

    run_id, _ = registry.runs.open_refresh("r1", tags={}, params={})
    card = scorecard("student", "student")
    with pytest.raises(Exception, match=r"."):
        registry.models.log_student(run_id, Sorter(), np.ones((2, 2), np.float32), card, {}, Lineage())
    [nested] = registry.client.search_runs([registry.experiment_id], "tags.role = 'student'")
    assert nested.info.status == "FAILED"
    [model] = registry.client.search_logged_models([registry.experiment_id])
    assert str(model.status) == "FAILED"


def test_an_mlflow_that_does_not_answer_is_reported_quickly(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in (
        "http://ann:secret@127.0.0.1:9/mlflow?key=secret",
        "postgresql+psycopg://ann:secret@127.0.0.1:9/mlflow",
    ):
        with pytest.raises(RegistryError, match=r"does not answer at \S+127.0.0.1:9/mlflow .*MLFLOW_TRACKING_URI") as e:
            Registry("flights", uri)
        assert "secret" not in str(e.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:9"):
        Registry("flights")


def test_a_server_that_accepts_and_says_nothing(home: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(RegistryError, match="does not answer"):
        Registry("flights", f"http://127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize(
    ("environment", "sent"),
    [
        ({}, None),
        ({"MLFLOW_TRACKING_TOKEN": "abc"}, "Bearer abc"),
        ({"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "secret"}, "Basic YW5uOnNlY3JldA=="),
    ],
)
def test_a_server_gets_one_request_with_mlflows_credentials(
    home: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], sent: str | None
) -> None:
    requests: list[tuple[str, str | None]] = []
    status = 401  # a server that refuses the credentials does answer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append((self.path, self.headers["Authorization"]))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_address[1]}/mlflow/"
        assert connect(uri).uri == uri
        assert requests == [("/mlflow/health", sent)]
        status = 503
        with pytest.raises(RegistryError, match=r"does not answer at .*status 503"):
            connect(uri)
        server.shutdown()


def test_default_locations(registry: Registry, home: Path) -> None:
    assert registry.uri == f"sqlite:///{home}/mlflow/mlflow.db"
    location = registry.client.get_experiment(registry.experiment_id).artifact_location
    assert location == (home / "mlflow" / "artifacts").as_uri()
    assert Registry("flights").experiment_id == registry.experiment_id


def test_a_deleted_experiment_says_how_to_restore_it(registry: Registry) -> None:
    registry.client.delete_experiment(registry.experiment_id)
    with pytest.raises(RegistryError, match="mlflow experiments restore --experiment-id 1"):
        Registry("flights")
