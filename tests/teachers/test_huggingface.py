"""A Hugging Face model as a teacher: probabilities, labels, texts, and folders that are refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from stillhouse.config import AgentConfig, HuggingfaceTeacher
from stillhouse.errors import PartError
from stillhouse.teachers import ensemble
from stillhouse.teachers.huggingface import label_matrix
from tests.teachers.test_ensemble import WINDOW, make_rows

transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "late", "on", "time", "rain", "ewr", "jfk", "5", ":"]
TEXTS = ["late", "on time", "rain " * 40, "", "ewr rain late", "jfk"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection is opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def write_model(folder: Path, seed: int = 0, labels: int = 3, **config: Any) -> Path:
    """A random BERT of 2 layers that reads 16 tokens."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"), model_max_length=16)
    torch.manual_seed(seed)
    names = ["delayed", "cancelled", "punctual"][:labels]
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    settings = transformers.BertConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=16,
        initializer_range=1.0,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        **sizes,
        **config,
    )
    transformers.BertForSequenceClassification(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("hub") / "bert")


LABELS = {"delayed": "move", "cancelled": "move", "punctual": "stay"}


def teacher(folder: Path, **keys: Any) -> dict[str, Any]:
    plain = {"kind": "huggingface", "name": "bert", "folder": str(folder), "column": "note", "labels": LABELS}
    return {key: value for key, value in (plain | keys).items() if value is not None}


def config_with(section: dict[str, Any]) -> AgentConfig:
    columns = {"temp": {"type": "number"}, "note": {"type": "text"}, "origin": {"type": "category"}}
    return AgentConfig.model_validate(
        {
            "agent": "toy",
            "actions": ["stay", "move"],
            "observations": {"source": "toy:rows", "since": "2013-01-01T00:00:00Z", "columns": columns},
            "outcomes": {"source": "toy:outcomes", "delay": "1d"},
            "teachers": [section],
            "student": {"kind": "text"},
            "windows": {"train": "8w", "test": "1w", "current": "7d"},
            "watch": {"thresholds": {"psi": 0.25}},
        }
    )


def rows_with_texts() -> pd.DataFrame:
    return make_rows(len(TEXTS)).assign(note=TEXTS, origin=["EWR", "JFK"] * 3)


def fit_and_load(out: Path, section: dict[str, Any]) -> ensemble.Ensemble:
    config = config_with(section)
    ensemble.fit(config, rows_with_texts(), WINDOW, out)
    return ensemble.load(out, config)


def reference_probs(folder: Path, texts: list[str]) -> np.ndarray:
    """Softmax of the model, one text at a time without padding: ``[n, 3]``."""
    model = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = [model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0] for text in texts]
    return torch.softmax(torch.stack(logits).double(), dim=1).numpy()


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_probabilities_of_labels_are_added_by_action(model: Path, tmp_path: Path, batch_size: int) -> None:
    loaded = fit_and_load(tmp_path / "t", teacher(model, batch_size=batch_size))
    probs, expected = loaded.predict_proba(rows_with_texts()), reference_probs(model, TEXTS)
    np.testing.assert_allclose(probs, np.column_stack([expected[:, 2], expected[:, :2].sum(axis=1)]), atol=1e-5)
    assert probs[:, 0].std() > 0.01 and loaded.fit_window is None


def test_template_is_filled_from_columns(model: Path, tmp_path: Path) -> None:
    loaded = fit_and_load(tmp_path / "t", teacher(model, column=None, template="{origin}: {temp:.0f}"))
    expected = reference_probs(model, [f"{origin}: {i}" for i, origin in enumerate(["EWR", "JFK"] * 3)])
    np.testing.assert_allclose(loaded.predict_proba(rows_with_texts())[:, 0], expected[:, 2], atol=1e-5)


def test_missing_text_is_empty_and_long_text_is_cut(model: Path, tmp_path: Path) -> None:
    rows = make_rows(3).assign(note=["rain", None, "rain late late"], origin="EWR")
    loaded = fit_and_load(tmp_path / "t", teacher(model, max_tokens=3))  # [CLS], one word, [SEP]
    expected = reference_probs(model, ["rain", "", "rain"])
    np.testing.assert_allclose(loaded.predict_proba(rows)[:, 0], expected[:, 2], atol=1e-5)


def test_version_follows_the_files_and_not_their_place(model: Path, tmp_path: Path) -> None:
    first = fit_and_load(tmp_path / "a", teacher(model))
    same = write_model(tmp_path / "moved")
    assert fit_and_load(tmp_path / "b", teacher(same, batch_size=2, weight=3)).version == first.version
    other = write_model(tmp_path / "other", seed=1)
    assert fit_and_load(tmp_path / "c", teacher(other)).version != first.version
    assert fit_and_load(tmp_path / "d", teacher(model, max_tokens=4)).version != first.version
    with pytest.raises(PartError, match=r"teachers\.bert: the section or the model has changed"):
        ensemble.load(tmp_path / "a", config_with(teacher(other)))


def edit_config(**keys: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return edit


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def index_of_pickles(folder: Path) -> None:
    pickle_weights(folder)
    index = {"metadata": {}, "weight_map": {"classifier.bias": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def without_classifier(folder: Path) -> None:
    transformers.BertModel.from_pretrained(folder).save_pretrained(folder)


def remote_code(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    names = {"AutoConfig": "evil.C", "AutoModelForSequenceClassification": "evil.M"}
    edit_config(model_type="evil", auto_map=names)(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pickle_weights, r"teachers\.bert\.folder: .* has no model\.safetensors; other formats may hold code"),
        (index_of_pickles, r"teachers\.bert\.folder: .* has no model\.safetensors; other formats may hold code"),
        (without_classifier, r"lacks weights of a sequence-classification model: classifier\.bias, classifier\.weight"),
        (remote_code, r"does not load as a sequence-classification model: ValueError"),
        (edit_config(transformers_weights="x.bin"), r"names another file of weights \(transformers_weights"),
        (edit_config(problem_type="multi_label_classification"), "must choose one of two labels or more"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must hold a JSON object"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "has an adapter, not a whole model"),
    ],
)
def test_unusable_folder_is_refused(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    folder = write_model(tmp_path / "bert")
    damage(folder)
    with pytest.raises(PartError, match=message):
        fit_and_load(tmp_path / "t", teacher(folder))


def test_name_on_the_hub_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"bert-base-uncased is no folder: write the model there"):
        fit_and_load(tmp_path / "t", teacher(Path("bert-base-uncased")))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "the labels of the model are NEG, POS, not the actions stay, move: write an action for each label"),
        ({"NEG": "stay", "POS": "move", "MEH": "stay"}, "MEH: no labels of the model, which has NEG, POS"),
        ({"NEG": "stay"}, "POS: labels of the model without an action"),
        ({"NEG": "stay", "POS": "go"}, "go: no actions; those are stay, move"),
        ({"NEG": "stay", "POS": "stay"}, "move: actions without a label"),
    ],
)
def test_wrong_label_map_is_refused(labels: dict[str, str] | None, message: str) -> None:
    with pytest.raises(PartError, match=rf"^here\.labels: {message}"):
        label_matrix(["NEG", "POS"], labels, ("stay", "move"), "here")


def test_labels_may_be_the_actions_in_another_order() -> None:
    np.testing.assert_array_equal(label_matrix(["b", "a"], None, ("a", "b"), "here"), [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"column": "temp"}, "column: 'temp' is a number column; it must be a text"),
        ({"column": None, "template": "{nte}"}, "template: no column is called 'nte'; did you mean 'note'?"),
        ({"column": None, "template": "{note"}, "template: expected '}' before end of string"),
        ({"column": None, "template": "same"}, "template: names no column in braces: every row would be the same text"),
    ],
)
def test_wrong_column_is_named(keys: dict[str, Any], error: str) -> None:
    columns = config_with(teacher(Path("x"))).observations.columns
    section = HuggingfaceTeacher.model_validate(teacher(Path("x"), **keys))
    assert next(section.column_errors(columns)) == error


@pytest.mark.parametrize("keys", [{"template": "{note}"}, {"column": None}])
def test_column_or_template_is_required(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="give either `column`, a text column, or `template`"):
        HuggingfaceTeacher.model_validate(teacher(Path("x"), **keys))
