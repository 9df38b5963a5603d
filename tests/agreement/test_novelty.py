"""The novelty guard: texts unlike anything learned from, its limit, its file and its cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stillhouse.agreement import NoveltyGuard

VERBS, THINGS = ("book", "cancel", "move", "find"), ("table", "flight", "hotel room", "taxi", "train ticket")
TIMES = ("tonight", "tomorrow morning", "next week", "on friday")
USUAL = [f"please {verb} a {thing} for {when}" for verb in VERBS for thing in THINGS for when in TIMES]


def test_known_words_in_known_order_are_not_novel_and_others_are() -> None:
    guard = NoveltyGuard.learn(USUAL)
    known, shuffled, foreign = (
        guard.score(text)
        for text in ("please book a taxi for tonight", "for please tonight book taxi a", "why is the sky blue")
    )
    assert known < shuffled < foreign and known < 0.05 and foreign > 0.9
    assert guard.score("") == guard.score(" ?! ") == 0.0


def test_the_limit_sends_a_stated_share_of_usual_texts_to_the_teacher() -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(len(USUAL))
    learned, held_out = [USUAL[i] for i in order[:20]], [USUAL[i] for i in order[20:]]
    guard = NoveltyGuard.learn(learned)
    for share in (0.0, 0.1, 0.5):
        limited = guard.calibrate(held_out, share)
        assert np.mean([limited.score(text) > limited.limit for text in held_out]) <= share
    assert guard.calibrate([]).limit == guard.limit


def test_a_guard_is_the_same_from_its_file_and_the_file_has_no_text(tmp_path: Path) -> None:
    guard = NoveltyGuard.learn(USUAL).calibrate(USUAL)
    guard.save(tmp_path / "a")
    NoveltyGuard.learn(USUAL).calibrate(USUAL).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = NoveltyGuard.load(tmp_path / "a")
    texts = [*USUAL, "why is the sky blue", "book book book"]
    assert [loaded.score(text) for text in texts] == [guard.score(text) for text in texts]
    assert loaded.limit == guard.limit and b"table" not in (tmp_path / "a").read_bytes()
    (tmp_path / "c").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not the file of a novelty guard"):
        NoveltyGuard.load(tmp_path / "c")
