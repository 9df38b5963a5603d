"""A refresh makes a bounded number of MLflow calls, which does not grow with the history."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient

from stillhouse.records import ModelRef
from stillhouse.registry import Lineage, NewVariant, RefusedVariant, Registry

from .conftest import START, Life, baseline, certificate, rows, scorecard, variant_folder, verdict


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Calls of ``MlflowClient`` by name, without the calls that it makes itself."""
    calls: Counter[str] = Counter()
    depth = 0

    def counting(name: str):  # type: ignore[no-untyped-def]
        original = getattr(MlflowClient, name)

        @functools.wraps(original)
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal depth
            calls[name] += not depth
            depth += 1
            try:
                return original(*args, **kwargs)
            finally:
                depth -= 1

        return call

    with monkeypatch.context() as patch:
        for name in dir(MlflowClient):
            if not name.startswith("_") and callable(getattr(MlflowClient, name)):
                patch.setattr(MlflowClient, name, counting(name))
        yield calls


def log_refresh(life: Life, refresh_id: str, variants: int) -> dict[str, ModelRef]:
    """What a refresh logs, from opening to promotion: half of its variants become versions, and one is refused."""
    registry = life.registry
    run_id, _ = registry.runs.open_refresh(refresh_id, tags={"cause": "drift-7"}, params={"temperature": 2.0})
    teacher = registry.register(
        registry.models.log_teacher(run_id, life.teacher(refresh_id), scorecard("teacher", "teacher"), {}),
        "flights-teacher",
    )
    lineage = Lineage(teacher=teacher, knowledge={"observations": 4})
    example, card = np.zeros((2, 3), np.float32), scorecard("student", "student")
    history = [{"loss": 1 / epoch, "validation_loss": 2 / epoch} for epoch in range(1, 21)]
    student = registry.register(
        registry.models.log_student(
            run_id,
            torch.nn.Linear(3, 2),
            example,
            card,
            {},
            lineage,
            metrics={"control.gain": 0.1},
            history=history,
            files={"distillation.json": verdict()},
        ),
        "flights-student",
    )
    names = [f"v{number}" for number in range(variants)]
    candidates = [
        NewVariant(
            variant_folder(life.folder / refresh_id / name, name),
            scorecard(name, "variant"),
            {"recipe": name},
            {"compression/seconds": 1.0},
            {"chosen": name == "v0"} if number < variants // 2 else None,
        )
        for number, name in enumerate(names)
    ]
    refused = RefusedVariant("heads50", "it has no attention", {"recipe": "[]"})
    lineage = lineage.model_copy(update={"student": student})
    refs = registry.publish_variants(run_id, [*candidates, refused], lineage, rows())
    figures = {f"figures/{name}.png": Figure(figsize=(1, 1)) for name in ("frontier", "tradeoff", "quality")}
    registry.runs.log(
        run_id,
        files={"profile.arrow": b"profile", "proof.json": verdict(), "baseline.json": baseline(teacher), **figures},
        metrics={"compression/hypervolume": 0.5},
    )
    registry.runs.log_verdict(run_id, certificate(refresh_id), verdict())
    registry.promote(registry.version_of(refresh_id, "v0"))
    registry.runs.close_refresh(run_id)
    return refs


@pytest.mark.slow
def test_a_refresh_takes_few_calls_and_no_more_with_a_history(
    registry: Registry, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_refresh(life, "r0", 2)
    counts = []
    for number, variants in ((1, 4), (2, 4), (3, 2)):
        with counted(monkeypatch) as calls:
            log_refresh(life, f"r{number}", variants)
        counts.append(calls)
    second, third, smaller = counts
    assert second == third  # the first of these had no previous champion's teacher to follow
    assert sum(third.values()) <= 116, third
    calls_per_pair = sum(third.values()) - sum(smaller.values())  # a registered variant and an unregistered one
    assert calls_per_pair <= 2 * 9 + 4, third - smaller
    assert third["log_batch"] <= 4 + 2 + 5 + 1, "one batch a nested run; those of the parent run"


def test_a_watch_takes_few_calls(registry: Registry, life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    log_refresh(life, "r0", 2)
    log_watch(registry, 0)
    with counted(monkeypatch) as calls:
        log_watch(registry, 1)
    assert calls == {
        "get_model_version_by_alias": 1,
        "get_model_version": 2,
        "search_runs": 1,
        "log_artifacts": 1,
        "log_batch": 1,
    }


def log_watch(registry: Registry, number: int) -> None:
    """The reads of a watch, several times each, and its log."""
    champion = registry.champion()
    assert champion is not None
    for _ in range(3):
        teacher = registry.baseline(champion).teacher
        assert registry.profile(champion) == b"profile"
        assert registry.models.scorecard(champion) == scorecard("v0", "variant")
    registry.models.fetch(champion)
    registry.models.fetch(teacher)
    run_id = registry.runs.open_watch(str(champion), START)
    registry.runs.log(
        run_id,
        files={"figures/drift.png": b"png", "verdict.json": verdict(), "data_checks.html": b"<html>"},
        points=[(START, number, {"psi.largest": 0.2})],
        tags={"outcome": "hold"},
    )


def test_candidates_logged_at_once_are_as_one_by_one(registry: Registry, life: Life, tmp_path: Path) -> None:
    """The same files, tags, params, metrics and links, but for names and ids."""
    refresh = life.refresh("r1", variants=("fp32",))
    run_id, _ = registry.runs.open_refresh("r2", tags={"cause": "drift-7"}, params={})
    lineage = Lineage(
        teacher=refresh["teacher"],
        student=refresh["student"],
        knowledge={"observations": 4, "outcomes": 2},
        drift="drift-7",
    )
    folders = {name: variant_folder(tmp_path / name, name) for name in ("fp32", "int8", "tiny")}
    refs = registry.publish_variants(
        run_id,
        [
            NewVariant(
                folder,
                scorecard(name, "variant"),
                {"method": name},
                {"compression/seconds": 2.0},
                {"gate": "passed"} if name != "tiny" else None,
            )
            for name, folder in folders.items()
        ],
        lineage,
        rows(),
    )
    assert {name: ref.version for name, ref in refs.items()} == {"fp32": "2", "int8": "3", "tiny": None}
    single_tags = registry.models.tags(refresh["fp32"])
    for name, ref in refs.items():
        tags = registry.models.tags(ref)
        differing = {"signature", "refresh_id", "refresh_run", "variant", *({"gate"} if name == "tiny" else ())}
        assert {key for key in single_tags if single_tags[key] != tags.get(key)} - differing == set()
        files = set(registry.models.signed(refresh["fp32"]).files)
        assert {
            path.replace(f"artifacts/{name}/", "artifacts/fp32/") for path in registry.models.signed(ref).files
        } == files
        run = registry.client.get_run(ref.run_id)
        assert (run.data.params, run.data.metrics["compression/seconds"]) == ({"method": name}, 2.0)
        assert run.data.metrics["own_test/auc"] == scorecard(name, "variant").test.auc
        model = registry.client.get_logged_model(registry.models.signed(ref).model_id)
        assert str(model.status) == "READY" and "compression/seconds" not in {metric.key for metric in model.metrics}
        assert (registry.models.fetch(ref) / "model.onnx").exists()
        for role in ("teacher", "student"):
            down = registry.models.tags(ModelRef(name="any", uri=tags[f"lineage.{role}"]))
            assert down[f"descendant.{model.model_id}"] == name
    assert registry.register(refs["int8"], "flights") == refs["int8"]
