"""Text students as variants: exported, quantised, pruned, and run on raw sentences without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch

from stillhouse.compress.export import run_torch
from stillhouse.compress.search.candidates import CandidateBuilder
from stillhouse.compress.target import ModelState
from stillhouse.compress.variants import target_from_student, variant_writer
from stillhouse.config import (
    DynamicInt8,
    Fp32,
    HashedRows,
    LowRank,
    PruneHeads,
    PruneLayers,
    PruneUnits,
    Recipe,
    StaticInt8,
    Vocabulary,
    WeightOnly,
    recipe_name,
)
from stillhouse.records import CompressionCandidate
from stillhouse.variant import Variant, encode
from tests.compress.models_for_tests import ACTIONS, ENCODERS, TEXT_COLUMNS, sentences, text_student

UNITS = PruneUnits(method="prune_units", recover_epochs=0)
STATIC = StaticInt8(method="int8_static")
ALL: tuple[Recipe, ...] = (
    (Fp32(method="fp32"),),
    (DynamicInt8(method="int8_dynamic"),),
    (STATIC,),
    (DynamicInt8(method="int8_dynamic", table_bits=4),),
    (StaticInt8(method="int8_static", table_bits=4),),
    (WeightOnly(method="weights"),),
    (WeightOnly(method="weights", bits=4, compute="int8"),),
    (UNITS,),
)
FORMATS = [recipe_name(recipe) for recipe in ALL[1:7]]


def make(student: Any, folder: Path, *recipes: Recipe) -> dict[str, CompressionCandidate]:
    rows = sentences(150)
    target = target_from_student(
        student,
        TEXT_COLUMNS,
        ACTIONS,
        calibration=lambda columns: encode(rows, columns),
        validation=lambda columns: encode(rows[:50], columns),
        quality=lambda p: float(p[:, 0].mean()),
    )
    builder = CandidateBuilder(target, variant_writer("clerk", ACTIONS, {}), folder, 0.1)
    return {recipe_name(recipe): builder.build(recipe) for recipe in recipes or ALL}


@pytest.fixture(scope="module", params=ENCODERS)
def candidates(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, CompressionCandidate]:
    return make(text_student(ENCODERS[request.param]), tmp_path_factory.mktemp(request.param))


def size(candidate: CompressionCandidate) -> int:
    return (Path(candidate.folder) / "model.onnx").stat().st_size


def test_every_recipe_agrees_with_the_student(candidates: dict[str, CompressionCandidate]) -> None:
    assert {name: candidate.refused for name, candidate in candidates.items()} == dict.fromkeys(candidates)
    assert candidates["fp32"].difference is not None and candidates["fp32"].difference < 1e-6
    for name in FORMATS:
        assert candidates[name].difference is not None and 0 < candidates[name].difference < 0.02
    assert candidates["units50"].difference is not None and candidates["units50"].difference > 0


def test_int8_is_a_third_of_the_bytes_embeddings_included(candidates: dict[str, CompressionCandidate]) -> None:
    for name in ("int8_dynamic", "int8_static", "weights8"):
        assert size(candidates[name]) < 0.45 * size(candidates["fp32"])
        graph = onnx.load(Path(candidates[name].folder) / "model.onnx").graph
        kinds = {tuple(tensor.dims): tensor.data_type for tensor in graph.initializer}
        table = next(kind for dims, kind in kinds.items() if dims[:1] == (len(TEXT_COLUMNS[2]["tokens"]),))
        assert table in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    for name in ("int8_dynamic", "int8_static"):
        assert size(candidates[f"{name}_tables4"]) < size(candidates[name])
    assert size(candidates[FORMATS[-1]]) < 0.8 * size(candidates["weights8"])
    assert size(candidates["units50"]) < size(candidates["fp32"])


def test_one_row_no_row_and_a_missing_text(candidates: dict[str, CompressionCandidate]) -> None:
    variant = Variant(candidates["int8_dynamic"].folder)
    rows = sentences(20, seed=3)
    together = variant.predict_proba(rows)
    alone = np.vstack([variant.predict_proba(rows.iloc[[i]]) for i in range(len(rows))])
    np.testing.assert_allclose(together, alone, atol=0.05)  # dynamic ranges are a batch's
    assert variant.predict(rows.iloc[:0]).empty
    assert np.isfinite(variant.predict_proba(rows.assign(said=None))).all()


def test_the_manifest_holds_the_tokeniser(candidates: dict[str, CompressionCandidate]) -> None:
    manifest = json.loads((Path(candidates["fp32"].folder) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["columns"] == TEXT_COLUMNS


def test_a_smaller_vocabulary_is_in_the_manifest_and_read_on_the_device(tmp_path: Path) -> None:
    recipe: Recipe = (Vocabulary(method="vocabulary", ratio=0.4, recover_epochs=0), STATIC)
    actual = make(text_student(ENCODERS["convolution"]), tmp_path, recipe, (STATIC,))
    small = Variant(actual["vocabulary40+int8_static"].folder)
    tokens = TEXT_COLUMNS[2]["tokens"]
    left = small.columns[2]["tokens"]
    assert len(left) == round(0.6 * len(tokens)) and set(left) < set(tokens)
    assert size(actual["vocabulary40+int8_static"]) < size(actual["int8_static"])
    rows, plain = sentences(200, 3), Variant(actual["int8_static"].folder)
    has_all_tokens = [all(tokens[int(i)] in left for i in row) for row in encode(rows, TEXT_COLUMNS)[:, 2:]]
    assert 10 < sum(has_all_tokens) < 200
    np.testing.assert_allclose(
        small.predict_proba(rows[has_all_tokens]), plain.predict_proba(rows[has_all_tokens]), atol=0.03
    )


@pytest.mark.slow
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    recipes: list[Recipe] = [(DynamicInt8(method="int8_dynamic"),), (UNITS, STATIC)]
    first, second = (make(text_student(ENCODERS["convolution"]), tmp_path / name, *recipes) for name in "ab")
    for name in first:
        assert (Path(first[name].folder) / "model.onnx").read_bytes() == (
            Path(second[name].folder) / "model.onnx"
        ).read_bytes()


def test_steps_one_after_another(tmp_path: Path) -> None:
    """Each finds what the one before has left of the module."""
    recipe: Recipe = (
        PruneLayers(method="prune_layers", recover_epochs=0),
        PruneHeads(method="prune_heads", recover_epochs=0),
        UNITS,
        Vocabulary(method="vocabulary", recover_epochs=0),
        HashedRows(method="hashed_rows", recover_epochs=0),
        LowRank(method="low_rank", recover_epochs=0),
        WeightOnly(method="weights", bits=4),
    )
    actual = make(text_student(ENCODERS["transformer"]), tmp_path, recipe, (Fp32(method="fp32"),))
    (small, has_all_tokens) = actual.values()
    assert small.name == "layers50+heads50+units50+vocabulary50+hashed50+rank50+weights4"
    assert small.refused is None and size(small) < 0.15 * size(has_all_tokens)


def test_what_has_no_hidden_units_is_refused_and_the_others_are_made(tmp_path: Path) -> None:
    actual = make(text_student(ENCODERS["bag"], widths=()), tmp_path, (Fp32(method="fp32"),), (UNITS,))
    assert actual["fp32"].refused is None
    assert actual["units50"].refused == (
        "prune_units: TextStudent has no layer whose units only other layers read: leave the step out"
    )


def test_a_pruned_encoder_still_answers_one_text_as_many(tmp_path: Path) -> None:
    """The exported state is checked on all rows at once and on one alone; so is the module here."""
    student = text_student(ENCODERS["transformer"])
    actual = make(student, tmp_path, (PruneHeads(method="prune_heads", recover_epochs=0),))["heads50"]
    variant, rows = Variant(actual.folder), sentences(20, 4)
    together = variant.predict_proba(rows)
    alone = np.vstack([variant.predict_proba(rows.iloc[[i]]) for i in range(20)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together - run_torch(ModelState(student).module, {"x": encode(rows, TEXT_COLUMNS)})).max() > 1e-4


def test_mlflow_takes_raw_sentences_without_torch(tmp_path: Path) -> None:
    """In a process where neither torch nor any tokeniser can be imported, strings in and the same decisions out."""
    from mlflow.models import Model

    from stillhouse.registry.packaging import save_variant

    (candidates,) = make(
        text_student(ENCODERS["bag"]), tmp_path / "made", (DynamicInt8(method="int8_dynamic"),)
    ).values()
    folder, rows = Path(candidates.folder), sentences(30, seed=5)
    save_variant(folder, rows, tmp_path / "model", Model())
    rows.to_json(tmp_path / "rows.json", orient="split")
    program = """
        import sys
        for name in ("torch", "transformers", "tokenizers", "stillhouse", "sentence_transformers"):
            sys.modules[name] = None
        import mlflow, pandas as pd
        model = mlflow.pyfunc.load_model(sys.argv[1])
        rows = pd.read_json(sys.argv[2], orient="split")
        model.predict(rows).to_json(sys.argv[3], orient="split", double_precision=15)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *(tmp_path / n for n in ("model", "rows.json", "said.json"))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": "", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    assert done.returncode == 0, done.stderr
    actual = pd.read_json(tmp_path / "said.json", orient="split")
    expected = Variant(folder).predict(rows)
    assert actual["action"].tolist() == expected["action"].tolist()
    np.testing.assert_allclose(actual.drop(columns="action"), expected.drop(columns="action"), rtol=1e-6)


@pytest.mark.slow
def test_mlflow_keeps_the_student_itself(tmp_path: Path) -> None:
    """As a graph that loads without our classes, whatever the encoder."""
    import mlflow.pytorch
    from mlflow.models import Model

    from stillhouse.registry.packaging import save_student

    x = encode(sentences(4), TEXT_COLUMNS)
    for name, encoder in ENCODERS.items():
        student = text_student(encoder)
        save_student(student, x, tmp_path / name, Model())
        actual = mlflow.pyfunc.load_model(str(tmp_path / name)).predict(encode(sentences(9, seed=2), TEXT_COLUMNS))
        with torch.no_grad():
            expected = student(torch.from_numpy(encode(sentences(9, seed=2), TEXT_COLUMNS))).numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
