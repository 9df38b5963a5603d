"""Small real models, and an MLflow store on SQLite in a temporary folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import stillhouse.variant
from stillhouse.compress.variants import copy_code
from stillhouse.records import (
    Baseline,
    Certificate,
    Disagreement,
    DriftCalibration,
    Latency,
    ModelRef,
    Quality,
    Scorecard,
    TeacherRef,
    Verdict,
    Window,
)
from stillhouse.registry import Lineage, NewVariant, Registry
from stillhouse.registry.names import registered_name
from stillhouse.signing import load_signer, model_statement, release_statement
from stillhouse.verifying import Model, digests
from tests.agents import agent_file

COLUMNS = [
    {"name": "wind", "type": "number"},
    {"name": "hour", "type": "number"},
    {"name": "origin", "type": "category", "values": ["EWR", "JFK"]},
]
ACTIONS = ["on_time", "late"]
START = datetime(2013, 1, 1, tzinfo=UTC)

FLIGHTS: dict[str, Any] = {
    "agent": "flights",
    "actions": ACTIONS,
    "observations": {
        "columns": {"wind": {"type": "number"}, "hour": {"type": "number"}, "origin": {"type": "category"}}
    },
    "windows": {"train": "7d", "test": "1d", "current": "1d"},
}
"""What the agent of these models changes in the small agent of ``tests/agents.py``."""

AGENT_FILE = agent_file(
    **FLIGHTS, teachers=[{"kind": "python", "name": "rule", "target": "rule_teacher:Rule", "weight": 2}]
)

RULE_TEACHER = """
from pathlib import Path
import numpy as np

class Rule:
    def __init__(self, limit=0.0): self.limit = limit
    def fit(self, rows, labels): ...
    def predict_proba(self, rows):
        late = np.where(rows["wind"].to_numpy() > self.limit, 0.9, 0.2)
        return np.column_stack([1 - late, late])
    def save(self, folder): Path(folder, "limit.txt").write_text(str(self.limit))
    @classmethod
    def load(cls, folder): return cls(float(Path(folder, "limit.txt").read_text()))
"""


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing else: making one takes seconds."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    from stillhouse.registry.connection import connect

    connect(f"sqlite:///{file}")
    return file


@pytest.fixture
def home(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "set to be unset")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "home" / "mlflow").mkdir(parents=True)
    shutil.copyfile(empty_store, tmp_path / "home" / "mlflow" / "mlflow.db")
    return tmp_path / "home"


@pytest.fixture(scope="session")
def store_of_three(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database after three refreshes: versions 1 to 3 of everything, nothing promoted."""
    folder = tmp_path_factory.mktemp("three")
    file = Path(shutil.copyfile(empty_store, folder / "mlflow.db"))
    life = Life(Registry("flights", f"sqlite:///{file}"), folder / "work")
    for number in (1, 2, 3):
        life.refresh(f"r{number}", seed=number)
    return file


@pytest.fixture
def three(home: Path, store_of_three: Path) -> Registry:
    """A registry with versions 1 to 3 of teacher, student and variant, nothing promoted."""
    shutil.copyfile(store_of_three, home / "mlflow" / "mlflow.db")
    return Registry("flights")


@pytest.fixture
def registry(home: Path) -> Registry:
    return Registry("flights")


class Life:
    """Logs the models of a refresh."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self.registry = registry
        self.folder = folder
        self.folder.mkdir(exist_ok=True)

    def refresh(self, refresh_id: str, seed: int = 0, variants: tuple[str, ...] = ("fp32",)) -> dict[str, ModelRef]:
        """Log and register a teacher, a student and variants; by name."""
        registry = self.registry
        run_id, _ = registry.runs.open_refresh(refresh_id, tags={"cause": "drift-7"}, params={"temperature": 2.0})
        teacher = registry.models.log_teacher(
            run_id, self.teacher(refresh_id), scorecard("teacher", "teacher"), {"n": 3}
        )
        lineage = Lineage(teacher=teacher, knowledge={"observations": 4, "outcomes": 2}, drift="drift-7")
        student = registry.models.log_student(
            run_id, torch.nn.Linear(3, 2), np.zeros((2, 3), np.float32), scorecard("student", "student"), {}, lineage
        )
        lineage = lineage.model_copy(update={"student": student})
        models = {"teacher": teacher, "student": student}
        for name in variants:
            folder = variant_folder(self.folder / refresh_id / name, name, seed)
            models[name] = log_variant(
                registry, run_id, folder, scorecard(name, "variant"), {"method": name}, lineage, rows()
            )
        for name, ref in models.items():
            role = name if name in ("teacher", "student") else "variant"
            models[name] = registry.register(ref, registered_name("flights", role), {"gate": "passed"})
        registry.runs.log_verdict(run_id, certificate(refresh_id), verdict())
        registry.runs.close_refresh(run_id)
        return models

    def teacher(self, version: str) -> TeacherRef:
        folder = self.folder / f"teacher-{version}"
        (folder / "rule").mkdir(parents=True)
        (folder / "rule" / "limit.txt").write_text("10.0")
        description = {
            "agent": "flights",
            "version": version,
            "parts": [{"name": "rule", "weight": 2.0, "folder": "rule"}],
            "fitted": window("fitted").model_dump(mode="json"),
        }
        (folder / "teacher.json").write_text(json.dumps(description))
        return TeacherRef(version=version, folder=str(folder), fitted=window("fitted"), bytes=4)


@pytest.fixture
def life(registry: Registry, tmp_path: Path) -> Life:
    return Life(registry, tmp_path / "work")


def log_variant(
    registry: Registry,
    run_id: str,
    folder: Path,
    card: Scorecard,
    params: dict[str, object],
    lineage: Lineage,
    example: pd.DataFrame,
) -> ModelRef:
    """Log one variant without registering it."""
    [ref] = registry.publish_variants(run_id, [NewVariant(folder, card, params)], lineage, example).values()
    return ref


def window(name: str) -> Window:
    versions = {"observations": 4, "outcomes": 2}
    return Window(name=name, start=START, end=START + timedelta(days=7), versions=versions)


def rows() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "wind": [3.0, np.nan, 12.5, 0.0],
            "hour": [1, 5, 12, 23],
            "origin": ["EWR", "JFK", "LGA", None],
            "tail": ["N1", "N2", "N3", "N4"],
        }
    )


def quality(auc: float = 0.71) -> Quality:
    return Quality(rows=900, auc=auc, log_loss=0.5, brier=0.3, accuracy=0.8, calibration_error=0.02)


def scorecard(model: str, role: str) -> Scorecard:
    return Scorecard(
        model=model,
        role=role,
        quality={"test": quality(), "train": quality(0.8)},
        slices={"origin=EWR": quality(0.7), "origin=São Paulo (GRU)": quality(0.6)},
        agreement=0.97,
        bytes=1234,
        latency=Latency(p50_ms=0.04, p95_ms=0.09, calls=500),
        cpu="test",
    )


def certificate(refresh_id: str) -> Certificate:
    return Certificate(
        agent="flights",
        refresh_id=refresh_id,
        challenger=scorecard("fp32", "variant"),
        champion=None,
        comparisons=(),
        confidence=0.95,
        max_bytes=None,
        max_p95_ms=None,
        approval="automatic",
        as_of=START,
    )


def verdict(outcome: str = "promoted") -> Verdict:
    return Verdict(
        verdict_id="v1", kind="gate", agent="flights", as_of=START, result=outcome, summary="fp32 is no worse"
    )


def baseline(teacher: ModelRef, *, train: Window | None = None, test: Window | None = None) -> Baseline:
    train, test = train or window("train"), test or window("test")
    return Baseline(
        train=train,
        test=test,
        as_of=test.end,
        losses={},
        quality=quality(),
        teacher=teacher,
        screens=DriftCalibration(block_length=timedelta(days=1), time_blocks=0, columns={}, joint=()),
        disagreement=Disagreement(rows=1, rate=0, total_variation=0),
    )


def signed_folder(folder: Path, agent: str, version: int) -> tuple[str, str]:
    """Signature and release of a variant's folder, as a refresh and a promotion sign them."""
    files = {f"artifacts/fp32/{path}": digest for path, digest in digests(folder).items()}
    model = Model(
        agent=agent,
        name=agent,
        version=str(version),
        model_id=f"m-{version}",
        role="variant",
        payload="artifacts/fp32",
        files=files,
        lineage={},
    )
    signer = load_signer()
    return signer.sign(model_statement(model)), signer.sign(release_statement(agent, str(version), version))


def variant_folder(folder: Path, name: str, seed: int = 0) -> Path:
    """A variant with a tiny ONNX model: softmax of a linear map, missing numbers as 0."""
    folder.mkdir(parents=True)
    weight = np.random.default_rng(seed).normal(size=(3, 2)).astype(np.float32) / 5
    graph = helper.make_graph(
        [
            helper.make_node("IsNaN", ["x"], ["missing"]),
            helper.make_node("Where", ["missing", "zero", "x"], ["filled"]),
            helper.make_node("MatMul", ["filled", "weight"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.float32(0), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    files = ("model.onnx", *copy_code(folder))
    manifest = {
        "format": 2,
        "agent": "flights",
        "variant": name,
        "actions": ACTIONS,
        "columns": COLUMNS,
        "sha256": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files},
        "lineage": {},
        "cpu": stillhouse.variant.processor(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
