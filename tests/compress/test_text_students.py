"""Text students on the device: exported, quantised and pruned, loaded without torch, raw sentences in."""

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

from stillhouse.compress.variants import VariantFile, make_variants
from stillhouse.config import BagEncoder, ConvolutionEncoder, DynamicInt8, Fp32, Prune, StaticInt8, TransformerEncoder
from stillhouse.distill.students import TextStudent, quantile_edges
from stillhouse.distill.vocabulary import grow_vocabulary
from stillhouse.errors import ExportError
from stillhouse.variant import Variant, encode

ENCODERS = {
    "bag": BagEncoder(type="bag", width=48, bigrams=300),
    "convolution": ConvolutionEncoder(type="convolution", width=24, filters=24),
    "transformer": TransformerEncoder(type="transformer", width=32, layers=2, heads=4, feedforward=64),
}
ALL = (
    Fp32(method="fp32"),
    DynamicInt8(method="int8_dynamic"),
    StaticInt8(method="int8_static"),
    Prune(method="prune", recover_epochs=0),
)
ACTIONS = ("greet", "book", "cancel")


def raw(count: int, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    words = np.array([f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"])
    said = [" ".join(random.choice(words, random.integers(0, 9))) for _ in range(count)]
    frame = pd.DataFrame(
        {"said": said, "hour": random.uniform(0, 24, count), "place": random.choice(["x", "y"], count)}
    )
    return frame.mask(random.random(frame.shape) < 0.05)


COLUMNS: list[dict[str, Any]] = [
    {"name": "hour", "type": "number"},
    {"name": "place", "type": "category", "values": ["x"]},
    {"name": "said", "type": "text", "length": 10, "tokens": grow_vocabulary(raw(500)["said"].dropna(), 400)},
]


def student_of(encoder: Any, widths: tuple[int, ...] = (32,)) -> TextStudent:
    torch.manual_seed(0)
    edges = quantile_edges(encode(raw(500), COLUMNS)[:, :1], 4)
    student = TextStudent(edges, (1,), [(len(COLUMNS[2]["tokens"]), 10)], encoder, 3, widths, embedding=2)
    for table in student.encoders:
        torch.nn.init.normal_(table.embedding.weight)  # far from even, as after training
    return student.eval()


def make(student: TextStudent, folder: Path, *compressions: Any) -> dict[str, VariantFile]:
    made = make_variants(
        student, compressions or ALL, agent="clerk", actions=ACTIONS, columns=COLUMNS,
        calibration=encode(raw(500), COLUMNS), recover=lambda module, epochs: module, folder=folder, lineage={},
    )  # fmt: skip
    return {file.name: file for file in made}


@pytest.fixture(scope="module", params=ENCODERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, VariantFile]:
    return make(student_of(ENCODERS[request.param]), tmp_path_factory.mktemp(request.param))


def test_every_compression_agrees_with_the_student(made: dict[str, VariantFile]) -> None:
    assert made["fp32"].agreement.max < 1e-5
    for name in ("int8_dynamic", "int8_static"):
        assert 0 < made[name].agreement.mean < 0.02
    assert made["pruned_50"].agreement.mean > 0


def test_int8_is_a_third_of_the_bytes_embeddings_included(made: dict[str, VariantFile]) -> None:
    sizes = {name: (Path(file.folder) / "model.onnx").stat().st_size for name, file in made.items()}
    for name in ("int8_dynamic", "int8_static"):
        assert sizes[name] < 0.45 * sizes["fp32"]
        graph = onnx.load(Path(made[name].folder) / "model.onnx").graph
        kinds = {tuple(tensor.dims): tensor.data_type for tensor in graph.initializer}
        table = next(kind for dims, kind in kinds.items() if dims[:1] == (len(COLUMNS[2]["tokens"]),))
        assert table in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    assert sizes["pruned_50"] < sizes["fp32"]


def test_one_row_and_no_row_and_nothing_said(made: dict[str, VariantFile]) -> None:
    variant = Variant(made["int8_dynamic"].folder)
    rows = raw(20, seed=3)
    together = variant.predict_proba(rows)
    alone = np.vstack([variant.predict_proba(rows.iloc[[i]]) for i in range(len(rows))])
    np.testing.assert_allclose(together, alone, atol=0.05)  # dynamic ranges are a batch's
    assert variant.predict(rows.iloc[:0]).empty
    assert np.isfinite(variant.predict_proba(rows.assign(said=None))).all()


def test_the_manifest_holds_the_tokeniser(made: dict[str, VariantFile]) -> None:
    manifest = json.loads((Path(made["fp32"].folder) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["columns"] == COLUMNS


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = (make(student_of(ENCODERS["bag"]), tmp_path / name)["int8_dynamic"] for name in "ab")
    assert (Path(one.folder) / "model.onnx").read_bytes() == (Path(other.folder) / "model.onnx").read_bytes()


def test_what_has_no_hidden_units_cannot_be_pruned(tmp_path: Path) -> None:
    student = student_of(ENCODERS["bag"], widths=())
    assert set(make(student, tmp_path, Fp32(method="fp32"))) == {"fp32"}
    with pytest.raises(ExportError, match="TextStudent cannot be pruned: `layers` has no hidden layer"):
        make(student, tmp_path, Prune(method="prune"))


def test_pruning_leaves_the_encoder_alone(tmp_path: Path) -> None:
    from stillhouse.compress.prune import prune_hidden_units
    from stillhouse.distill.students import load, save

    student = student_of(ENCODERS["transformer"])
    pruned = prune_hidden_units(student, 0.5)
    assert pruned.spec["widths"] == [16]
    for name, weights in student.encoders.state_dict().items():
        assert torch.equal(pruned.encoders.state_dict()[name], weights)
    save(pruned, tmp_path)
    x = torch.from_numpy(encode(raw(5), COLUMNS))
    assert torch.equal(load(tmp_path)(x), pruned(x))


def test_mlflow_takes_raw_sentences_without_torch(made: dict[str, VariantFile], tmp_path: Path) -> None:
    """In a process where neither torch nor any tokeniser can be imported, strings in and the same decisions out."""
    from mlflow.models import Model

    from stillhouse.registry.packaging import save_variant

    folder, rows = Path(made["int8_dynamic"].folder), raw(30, seed=5)
    save_variant(folder, rows, tmp_path / "model", Model())
    rows.to_json(tmp_path / "rows.json", orient="split")
    program = """
        import sys
        for name in ("torch", "transformers", "tokenizers", "stillhouse", "sentence_transformers"):
            sys.modules[name] = None
        import mlflow, pandas as pd
        model = mlflow.pyfunc.load_model(sys.argv[1])
        types = {column.name: str(column.type) for column in model.metadata.signature.inputs.inputs}
        assert types["said"] == "DataType.string", types
        rows = pd.read_json(sys.argv[2], orient="split")
        model.predict(rows).to_json(sys.argv[3], orient="split", double_precision=15)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *(tmp_path / n for n in ("model", "rows.json", "said.json"))],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": "", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = pd.read_json(tmp_path / "said.json", orient="split")
    wanted = Variant(folder).predict(rows)
    assert said["action"].tolist() == wanted["action"].tolist()
    np.testing.assert_allclose(said.drop(columns="action"), wanted.drop(columns="action"), rtol=1e-6)


def test_mlflow_keeps_the_student_itself(tmp_path: Path) -> None:
    """As a graph that loads without our classes, whatever the encoder."""
    import mlflow.pytorch
    from mlflow.models import Model

    from stillhouse.registry.packaging import save_student

    x = encode(raw(4), COLUMNS)
    for name, encoder in ENCODERS.items():
        student = student_of(encoder)
        save_student(student, x, tmp_path / name, Model())
        said = mlflow.pyfunc.load_model(str(tmp_path / name)).predict(encode(raw(9, seed=2), COLUMNS))
        with torch.no_grad():
            wanted = student(torch.from_numpy(encode(raw(9, seed=2), COLUMNS))).numpy()
        np.testing.assert_allclose(said, wanted, rtol=1e-4, atol=1e-5)
