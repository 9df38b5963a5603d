"""Replies: parsed actions, votes, and log-probabilities of tokens."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from math import log
from typing import Any

import numpy as np
import pytest

from stillhouse.teachers.replies import parse_action, probs_from_logprobs, probs_from_votes, read_retry_after

ACTIONS = ("on_time", "late")


@pytest.mark.parametrize(
    "text", ["late", " Late.\n", '"late"', '{"action": "late"}', '{"action":"LATE","why":"snow"}', "**late**"]
)
def test_parse_action_accepts(text: str) -> None:
    assert parse_action(text, ACTIONS) == 1


@pytest.mark.parametrize(
    "text",
    ["", "later", "on_time or late", '{"action": 1}', '{"act": "late"}', "[1]", "null", "{", None, 3, "[" * 9999],
)
def test_parse_action_rejects(text: Any) -> None:
    assert parse_action(text, ACTIONS) is None


@pytest.mark.parametrize(
    ("text", "actions", "index"),
    [
        ("1", ("0", "1"), 1),
        ('{"action": 1}', ("0", "1"), 1),
        ("true", ("true", "false"), 0),
        ("null", ("no", "null"), 1),
        ('{"action": false}', ("true", "false"), 1),
        ("1.0", ("1", "1.0"), 1),
        ("[1]", ("[1]", "2"), 0),
        ('```json\n{"action": "b"}\n```', ("a", "b"), 1),
    ],
)
def test_action_names_that_look_like_json(text: str, actions: tuple[str, ...], index: int) -> None:
    assert parse_action(text, actions) == index


def test_probs_from_votes_match_hand_computation() -> None:
    """(3 + 1) / (5 + 2) and (2 + 1) / (5 + 2)"""
    np.testing.assert_allclose(probs_from_votes([3, 2], 1.0), [4 / 7, 3 / 7])
    np.testing.assert_allclose(probs_from_votes([0, 0, 4], 0.5), [0.5 / 5.5, 0.5 / 5.5, 4.5 / 5.5])


def make_token(text: str, p: float, **others: float) -> tuple[str, float, list[tuple[str, float]]]:
    return text, log(p), [(name, log(q)) for name, q in {text: p, **others}.items()]


def test_logprobs_of_one_token() -> None:
    np.testing.assert_allclose(probs_from_logprobs([make_token("late", 0.7, on=0.3)], ACTIONS), [0.3, 0.7])


def test_other_tokens_are_spread_evenly() -> None:
    """0.6 and 0.2 go to actions; the other 0.2 is shared by both actions."""
    np.testing.assert_allclose(probs_from_logprobs([make_token("late", 0.6, on=0.2, maybe=0.15)], ACTIONS), [0.3, 0.7])


@pytest.mark.parametrize("before", ['{"action": "', '{"action":"', '\n{ "action" : "', " ", ""])
def test_json_before_the_action_is_skipped(before: str) -> None:
    tokens = [
        make_token(before[:4], 0.9, no=0.1),
        make_token(before[4:], 1.0),
        make_token("on", 0.75, late=0.25),
        make_token("_time", 1.0),
    ]
    np.testing.assert_allclose(probs_from_logprobs([t for t in tokens if t[0]], ACTIONS), [0.75, 0.25])


def test_token_that_includes_the_quote() -> None:
    tokens = [
        make_token('{"action":', 1.0),
        (' "late', log(0.8), [(' "late', log(0.8)), (' "on', log(0.15)), ("x", log(0.05))]),
    ]
    np.testing.assert_allclose(probs_from_logprobs(tokens, ACTIONS), [0.175, 0.825])


def test_actions_with_a_common_prefix() -> None:
    """0.9 · 0.6 to go_home, 0.9 · 0.4 to go_out, 0.1 to stay."""
    tokens = [make_token("go", 0.9, stay=0.1), make_token("_", 1.0), make_token("home", 0.6, out=0.4)]
    np.testing.assert_allclose(probs_from_logprobs(tokens, ("go_home", "go_out", "stay")), [0.54, 0.36, 0.1])


def test_action_that_is_a_prefix_of_another() -> None:
    ends = [make_token("go", 0.8, stay=0.2), ('"', log(0.7), [('"', log(0.7)), ("_home", log(0.3))])]
    np.testing.assert_allclose(probs_from_logprobs(ends, ("go", "go_home", "stay")), [0.56, 0.24, 0.2])
    bare = [make_token("go", 0.8, stay=0.2)]
    np.testing.assert_allclose(probs_from_logprobs(bare, ("go", "go_home", "stay")), [0.8, 0.0, 0.2])


def test_logprobs_always_give_a_distribution() -> None:
    rng, pieces = np.random.default_rng(5), ["on", "_time", "late", "l", "ate", '"', " ", "on_time", "x", "}", "go"]
    for _ in range(300):
        tokens = []
        for _ in range(rng.integers(1, 6)):
            chosen = rng.choice(len(pieces), rng.integers(1, 6), replace=False)
            p = rng.dirichlet(np.ones(len(chosen) + 1))[:-1]
            tops = [(pieces[c], log(max(q, 1e-12))) for c, q in zip(chosen, p, strict=True)]
            tokens.append((*tops[0], tops))
        probs = probs_from_logprobs(tokens, ACTIONS)
        assert (probs >= 0).all()
        assert probs.sum() == pytest.approx(1.0)


def test_any_text_may_be_an_action() -> None:
    actions = ["UP", "up", "pay", "pay now", "a, b", 'say "no"\nthen go', "go!"]
    for index, action in enumerate(actions):
        assert parse_action(action, actions) == parse_action(json.dumps({"action": action}), actions) == index
    assert parse_action("Up", actions) is None and parse_action(" GO! ", actions) == 6


@pytest.mark.parametrize("action", ["UP", "up", "pay", "pay now", 'say "no"\nthen go'])
def test_logprobs_find_any_action(action: str) -> None:
    actions = ["UP", "up", "pay", "pay now", 'say "no"\nthen go']
    tokens = [(c, 0.0, [(c, 0.0)]) for c in json.dumps({"action": action}, ensure_ascii=False)]
    assert probs_from_logprobs(tokens, actions).argmax() == actions.index(action)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("1.5", 1.5, 1.5),
        ("-3", 0, 0),
        ("soon", 0, 0),
        ("", 0, 0),
        (formatdate(time.time() + 9000, usegmt=True), 7000, 9001),
    ],
    ids=["seconds", "negative", "words", "empty", "date"],
)
def test_retry_after_in_seconds_or_as_date(value: str, low: float, high: float) -> None:
    assert low <= read_retry_after({"retry-after": value}) <= high
