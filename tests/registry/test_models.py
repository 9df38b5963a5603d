"""Logged models: lineage both ways, no pickle, and loading where neither stillhouse nor torch is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mlflow.models import Model
from mlflow.pyfunc.scoring_server import infer_and_parse_data, parse_csv_input

from stillhouse.errors import RegistryError
from stillhouse.records import ModelRef
from stillhouse.registry import Lineage, Registry
from stillhouse.registry.metrics import metric_name
from stillhouse.registry.packaging import VariantWriter, save_variant
from stillhouse.variant import Variant

from .conftest import AGENT_FILE, RULE_TEACHER, Life, log_variant, quality, rows, scorecard, variant_folder


@pytest.fixture
def models(registry: Registry, life: Life) -> dict[str, ModelRef]:
    refresh = life.refresh("r1", variants=("fp32", "int8_dynamic"))
    registry.promote(refresh["fp32"].version)
    return refresh


def logged(registry: Registry, ref: ModelRef) -> str:
    return str(registry.client.get_model_version(ref.name, ref.version).source)


def test_lineage_leads_both_ways(registry: Registry, models: dict[str, ModelRef]) -> None:
    teacher, student, variant = (logged(registry, models[name]) for name in ("teacher", "student", "fp32"))
    tags = registry.models.tags(models["fp32"])
    assert (tags["lineage.student"], tags["lineage.teacher"]) == (student, teacher)
    assert (tags["lineage.knowledge"], tags["lineage.drift"]) == ("observations@4,outcomes@2", "drift-7")
    assert (tags["role"], tags["variant"], tags["refresh_id"], tags["gate"]) == ("variant", "fp32", "r1", "passed")
    assert registry.models.tags(models["student"])["lineage.teacher"] == teacher
    assert registry.models.tags(models["teacher"])["lineage.knowledge"] == "observations@4,outcomes@2"

    for ancestor in (teacher, student):
        down = registry.models.tags(ModelRef(name="any", uri=ancestor))
        assert down[f"descendant.{variant.removeprefix('models:/')}"] == "fp32"
    parent = registry.client.get_run(tags["refresh_run"])
    assert parent.data.tags["cause"] == "drift-7"
    nested = registry.client.get_run(models["fp32"].run_id)
    assert nested.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert [output.model_id for output in nested.outputs.model_outputs] == [variant.removeprefix("models:/")]
    assert {f"models:/{found.model_id}" for found in nested.inputs.model_inputs} == {student, teacher}


def test_lineage_of_a_kept_teacher_is_its_logged_model(
    registry: Registry, models: dict[str, ModelRef], life: Life, tmp_path: Path
) -> None:
    run_id, _ = registry.runs.open_refresh("r2", tags={}, params={})
    reused = life.teacher("r2").model_copy(update={"model": models["teacher"]})
    assert registry.models.log_teacher(run_id, reused, scorecard("teacher", "teacher"), {}) == models["teacher"]
    lineage = Lineage(teacher=models["teacher"])
    folder = variant_folder(tmp_path / "v", "fp32")
    ref = log_variant(registry, run_id, folder, scorecard("fp32", "variant"), {}, lineage, rows())
    assert registry.models.tags(ref)["lineage.teacher"] == logged(registry, models["teacher"])
    registry.promote(registry.register(ref, "flights", {}).version)
    for alias in ("champion", "previous"):
        assert registry.version("flights-teacher", alias).version == "1"
    assert registry.version("flights-student", "champion") is None  # this one descends from no student


def test_figures_are_metrics_of_run_and_model(registry: Registry, models: dict[str, ModelRef]) -> None:
    run = registry.client.get_run(models["fp32"].run_id)
    assert run.data.params == {"method": "fp32"}
    assert run.data.metrics["own_test/auc"] == quality().auc
    assert run.data.metrics["own_slice/origin:EWR/auc"] == 0.7
    assert run.data.metrics[f"own_slice/{metric_name('origin=São Paulo (GRU)')}/auc"] == 0.6
    assert (run.data.metrics["bytes"], run.data.metrics["latency/p95_ms"]) == (1234, 0.09)
    model_id = logged(registry, models["fp32"]).removeprefix("models:/")
    on_model = {metric.key: metric.value for metric in registry.client.get_logged_model(model_id).metrics}
    assert on_model == run.data.metrics


def test_no_pickle_is_stored(models: dict[str, ModelRef], home: Path) -> None:
    files = [path for path in (home / "mlflow" / "artifacts").rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if path.suffix in (".pkl", ".pickle", ".pth", ".pt", ".joblib")] == []
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_student_loads_without_pickle(registry: Registry, home: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)).train()
    run_id, _ = registry.runs.open_refresh("r1", tags={}, params={})
    one_row = np.zeros((1, 3), np.float32)
    ref = registry.models.log_student(run_id, module, one_row, scorecard("student", "student"), {}, Lineage())
    assert module.training
    folder = registry.client.get_logged_model(ref.uri.removeprefix("models:/")).artifact_location
    matrix = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    predictions = mlflow.pyfunc.load_model(folder).predict(matrix)
    np.testing.assert_allclose(predictions, module.eval()(torch.from_numpy(matrix)).detach().numpy(), rtol=1e-5)


def test_student_files_come_back(registry: Registry, models: dict[str, ModelRef], tmp_path: Path) -> None:
    """``models`` were logged as a graph alone."""
    registry.promote("1")
    assert registry.models.student_files(registry.champion()) is None
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "columns.json").write_text("[]")
    run_id, _ = registry.runs.open_refresh("r1", tags={}, params={})
    card, example = scorecard("student", "student"), np.zeros((1, 3), np.float32)
    student = registry.models.log_student(
        run_id, torch.nn.Linear(3, 2), example, card, {}, Lineage(), tmp_path / "student"
    )
    tags = {"lineage.student": student.uri}
    variant = registry.champion()
    registry.models.set_tags(logged(registry, variant).removeprefix("models:/"), tags)
    folder = registry.models.student_files(variant)
    assert folder is not None and [file.name for file in folder.iterdir()] == ["columns.json"]
    assert (registry.models.fetch(student) / "model.pt2").exists() and registry.models.student_files(variant) == folder


def test_champion_loads_without_stillhouse_and_torch(
    registry: Registry, models: dict[str, ModelRef], tmp_path: Path
) -> None:
    rows().to_json(tmp_path / "rows.json", orient="split")
    program = """
        import sys
        sys.modules["torch"] = sys.modules["stillhouse"] = None
        import mlflow, pandas as pd
        rows = pd.read_json(sys.argv[1], orient="split")
        assert rows["hour"].dtype == "int64" and rows["wind"].isna().any() and "tail" in rows
        model = mlflow.pyfunc.load_model("models:/flights@champion")
        model.predict(rows).to_json(sys.argv[2], orient="split", double_precision=15)
        try:
            model.predict(rows.drop(columns=["hour", "origin"]))
        except Exception as error:
            print(error)
    """
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(program),
            str(tmp_path / "rows.json"),
            str(tmp_path / "predictions.json"),
        ],
        env=os.environ | {"MLFLOW_TRACKING_URI": registry.uri},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "missing columns" in done.stdout and "'hour'" in done.stdout and "'origin'" in done.stdout
    predictions = pd.read_json(tmp_path / "predictions.json", orient="split")
    expected = Variant(registry.models.fetch(registry.champion())).predict(rows())
    assert list(predictions.columns) == ["action", "p_on_time", "p_late"]
    pd.testing.assert_frame_equal(predictions, expected, check_dtype=False, rtol=1e-6)


@pytest.mark.parametrize(
    "hour",
    [
        np.array([1, 5, 12, 23], np.int64),
        np.array([1.0, np.nan, 12, 23]),
        pd.array([1, None, 12, 23], dtype="Int64"),
        [1, None, 12, 23.0],
        [None] * 4,
    ],
)
def test_numbers_of_every_dtype_pass_the_signature(
    registry: Registry, models: dict[str, ModelRef], hour: object
) -> None:
    location = registry.client.get_logged_model(logged(registry, models["fp32"]).removeprefix("models:/"))
    raw = rows().assign(hour=hour).set_index(pd.Index(["a", "b", "c", "d"]))
    predictions = mlflow.pyfunc.load_model(location.artifact_location).predict(raw)
    expected = Variant(registry.models.fetch(models["fp32"])).predict(raw)
    pd.testing.assert_frame_equal(predictions, expected)


CSV = "wind,hour,origin,tail\n3.0,5,EWR,N1\n,12,,\n7,,LGA,N2\n1,1,JFK,N3\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variant as a folder in MLflow's format."""
    scratch = tmp_path_factory.mktemp("saved")
    save_variant(variant_folder(scratch / "variant", "fp32"), rows(), scratch / "model", Model())
    return scratch / "model"


def test_mlflows_own_server_takes_csv_and_json(saved: Path) -> None:
    model = mlflow.pyfunc.load_model(str(saved))
    schema = model.metadata.get_input_schema()
    records = [
        {"wind": 3.0, "hour": 5, "origin": "EWR"},
        {"wind": None, "hour": 12, "origin": None},
        {"wind": 7, "hour": None, "origin": "LGA"},
        {"wind": True, "hour": 1, "origin": "JFK"},
    ]
    expected = Variant(saved / "artifacts" / "variant").predict(records)
    bodies: list[dict[str, Any]] = [
        {"dataframe_records": records},
        {"dataframe_split": {"columns": list(records[0]), "data": [list(row.values()) for row in records]}},
        {"instances": records},
        {"inputs": {name: [row[name] for row in records] for name in records[0]}},
    ]
    parsed = [parse_csv_input(StringIO(CSV), schema), *(infer_and_parse_data(body, schema) for body in bodies)]
    for frame in parsed:
        pd.testing.assert_frame_equal(model.predict(frame), expected)
    numbers = parse_csv_input(StringIO("wind,hour,origin\nTrue,5,EWR\nFalse,12,LGA\n"), schema)
    assert numbers["hour"].dtype == "int64" and numbers["wind"].dtype == "bool"
    assert model.predict(numbers).equals(model.predict(numbers.assign(wind=[1.0, 0.0], hour=[5.0, 12.0])))
    assert model.metadata.metadata["columns"][0] == {"name": "wind", "type": "number"}


def test_a_second_variant_is_written_as_mlflow_would(tmp_path: Path) -> None:
    def model() -> Model:
        return Model(artifact_path="here", run_id="r", model_uuid="m-1", model_id="m-1")

    writer, first, second = VariantWriter(rows()), *(variant_folder(tmp_path / name, name, 7) for name in "ab")
    writer.save(first, tmp_path / "first", Model())
    writer.save(second, tmp_path / "written", model())
    save_variant(second, rows(), tmp_path / "saved", model())
    files = {
        folder: {
            file.relative_to(tmp_path / folder): file.read_bytes()
            for file in (tmp_path / folder).rglob("*")
            if file.is_file()
        }
        for folder in ("written", "saved")
    }
    descriptions = [yaml.safe_load(contents.pop(Path("MLmodel"))) for contents in files.values()]
    assert files["written"] == files["saved"]
    for description in descriptions:
        del description["utc_time_created"], description["flavors"]["python_function"]["model_code_path"]
    assert descriptions[0] == descriptions[1]
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "written"))
    pd.testing.assert_frame_equal(loaded.predict(rows()), Variant(second).predict(rows()))


def test_a_variant_of_other_columns_is_written_on_its_own(tmp_path: Path) -> None:
    writer, first, second = VariantWriter(rows()), *(variant_folder(tmp_path / name, name) for name in "ab")
    manifest = json.loads((second / "manifest.json").read_text())
    (second / "manifest.json").write_text(json.dumps(manifest | {"columns": manifest["columns"][:2]}))
    for folder in (first, second):
        writer.save(folder, tmp_path / f"saved-{folder.name}", Model())
    columns = [Model.load(str(tmp_path / f"saved-{name}")).metadata["columns"] for name in "ab"]
    assert [len(names) for names in columns] == [3, 2]


@pytest.mark.parametrize("name", ["variant.py", "values.py", "model.onnx"])
def test_an_altered_file_is_refused_before_any_of_it_runs(saved: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(saved, tmp_path / "model")
    (file,) = (tmp_path / "model").rglob(name)
    file.write_bytes(file.read_bytes() + b"\nraise SystemExit('it ran')\n")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))


def test_text_in_a_number_column_is_refused_by_name(registry: Registry, models: dict[str, ModelRef]) -> None:
    location = registry.client.get_logged_model(logged(registry, models["fp32"]).removeprefix("models:/"))
    model = mlflow.pyfunc.load_model(location.artifact_location)
    with pytest.raises(Exception, match="column 'hour' must be numeric"):
        model.predict(rows().assign(hour=["one", "two", "three", "four"]))


def test_example_without_the_columns_is_refused(registry: Registry, tmp_path: Path) -> None:
    run_id, _ = registry.runs.open_refresh("r1", tags={}, params={})
    folder = variant_folder(tmp_path / "v", "fp32")
    with pytest.raises(RegistryError, match=r"lacks the columns \['wind'\]"):
        log_variant(registry, run_id, folder, scorecard("fp32", "variant"), {}, Lineage(), rows().drop(columns="wind"))


def test_teacher_loads_through_the_agent_file(
    registry: Registry, models: dict[str, ModelRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "flights.yaml").write_text(AGENT_FILE)
    (tmp_path / "rule_teacher.py").write_text(RULE_TEACHER)
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(tmp_path / "agents"))
    monkeypatch.syspath_prepend(tmp_path)
    location = registry.client.get_logged_model(logged(registry, models["teacher"]).removeprefix("models:/"))
    predictions = mlflow.pyfunc.load_model(location.artifact_location).predict(rows())
    np.testing.assert_allclose(predictions[:, 1], [0.2, 0.2, 0.9, 0.2])

    (tmp_path / "agents" / "flights.yaml").write_text(AGENT_FILE.replace("name: rule", "name: other"))
    with pytest.raises(Exception, match="'rule'"):
        mlflow.pyfunc.load_model(location.artifact_location)


def test_a_candidate_that_cannot_serve_is_a_run_with_the_reason_and_no_model(registry: Registry) -> None:
    run_id, _ = registry.runs.open_refresh("r1", tags={}, params={})
    why = "prune_heads: TabularStudent has no attention " + "x" * 6000
    registry.models.log_refused(run_id, "heads50", why, {"ratio": 0.5, "keep": None})
    (run,) = registry.client.search_runs([registry.experiment_id], "tags.role = 'refused'")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "heads50")
    tags = run.data.tags
    assert (tags["mlflow.parentRunId"], tags["agent"], tags["variant"]) == (run_id, "flights", "heads50")
    assert tags["refused"] == why[:5000] and tags["mlflow.note.content"] == why
    assert run.data.params == {"ratio": "0.5"} and not run.data.metrics
    assert not registry.client.search_logged_models([registry.experiment_id])
