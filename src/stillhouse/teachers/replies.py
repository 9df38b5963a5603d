"""From a language model's reply to probabilities: the action it names, votes, and log-probabilities of tokens."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np

from stillhouse.teachers.answers import Array
from stillhouse.values import ValueRefused, text_of

__all__ = [
    "ErrorReplyError",
    "Token",
    "describe_error",
    "parse_action",
    "probs_from_logprobs",
    "probs_from_votes",
    "read_retry_after",
    "read_tokens",
    "require_choices",
]

Token = tuple[str, float, Sequence[tuple[str, float]]]
"""Text of a token, its log-probability, and the most probable alternatives at its position."""

_BEFORE_ACTION = re.compile(r'\s*\{\s*"action"\s*:\s*"|[\s"\'`*]*')
_CODE_FENCE = re.compile(r"\A\s*```(?:json)?\s*(.*?)\s*```\s*\Z", re.DOTALL)
_END_OF_WORD = re.compile(r"$|[^\w-]")


class ErrorReplyError(Exception):
    """A reply with status 200 that holds an error instead of an answer."""

    def __init__(self, error: Any) -> None:
        details = error if isinstance(error, Mapping) else {"message": error}
        code = str(details.get("code", details.get("status", "")))
        super().__init__(str(details.get("message") or details))
        self.status_code = int(code) if re.fullmatch(r"[45]\d\d", code) else None


def parse_action(text: object, actions: Sequence[str]) -> int | None:
    """Index of the action that an answer names, as JSON or as a bare word; None if it names none.

    >>> parse_action('{"action": "late"}', ("on_time", "late")), parse_action("maybe", ("on_time", "late"))
    (1, None)
    """
    if not isinstance(text, str):
        return None
    answer: Any = text
    with suppress(ValueError, RecursionError):
        value = json.loads(_CODE_FENCE.sub(r"\1", text))
        answer = value.get("action") if isinstance(value, dict) else value if isinstance(value, str) else text
    try:
        answer = text_of(answer)  # `1` and `true` are how a model may write the actions "1" and "true"
    except ValueRefused:
        return None
    if answer is None:
        return None
    for normalise in (str, _strip, lambda text: _strip(text).casefold()):  # of `UP` and `up`, the one that was written
        matching = [i for i, action in enumerate(actions) if normalise(action) == normalise(answer)]
        if len(matching) == 1:
            return matching[0]
    return None


def probs_from_votes(counts: Sequence[int], smoothing: float) -> Array:
    """``(count + α) / (n + α K)`` for each of K actions: the posterior mean under a Dirichlet prior (Laplace).

    >>> probs_from_votes([3, 0], smoothing=1.0)
    array([0.8, 0.2])
    """
    votes = np.asarray(counts, dtype=np.float64) + smoothing
    probs: Array = votes / votes.sum()
    return probs


def probs_from_logprobs(tokens: Sequence[Token], actions: Sequence[str], begin: int | None = None) -> Array:
    """Probability of each action from the log-probabilities of an answer's tokens.

    Each alternative token along the answer adds its probability, times that of the tokens before it, to the action
    that it leads to. An alternative that leads to several actions is shared among them. The rest is spread evenly over
    all actions, so that a model that hardly knows the actions gives flat probabilities.

    :param tokens: of the answer, in order.
    :param begin: position in the answer's text at which the action begins; None: after the beginning of JSON such as
        ``{"action": "``, if there is one.
    :returns: float64 ``[K]`` that sums to 1.
    """
    probs, prefix_prob, prefix, position = np.zeros(len(actions)), 1.0, "", 0
    text = "".join(token for token, _, _ in tokens)
    begin = _action_start(text) if begin is None else begin
    written = [json.dumps(action, ensure_ascii=False)[1:-1] for action in actions] if text[:begin].strip() else actions
    fold = str.casefold if len({action.casefold() for action in written}) == len(written) else str
    folded = list(map(fold, written))
    for token, logprob, alternatives in tokens:
        skipped = token[: max(0, begin - position)]  # the part of this token before the action
        position += len(token)
        if position <= begin:
            continue
        for alternative, alternative_logprob in alternatives:
            if alternative != token and alternative.startswith(skipped):
                continued = prefix + fold(alternative[len(skipped) :])
                _add_prob(probs, folded, continued, prefix_prob * math.exp(alternative_logprob))
        prefix_prob *= min(1.0, math.exp(logprob))
        prefix += fold(token[len(skipped) :])
        if len(_matching_actions(folded, prefix)) <= 1:
            break
    final = [i for i, action in enumerate(folded) if action == prefix] or _matching_actions(folded, prefix)
    probs[final] += prefix_prob / max(1, len(final))
    total = probs.sum()
    normalised: Array = probs / total if total > 1 else probs + (1 - total) / len(actions)
    return normalised


def read_tokens(choice: Any) -> list[Token]:
    """The tokens of an answer with their log-probabilities; empty if the server gives none, or malformed ones."""
    content = getattr(getattr(choice, "logprobs", None), "content", None) or []
    with suppress(AttributeError, TypeError, ValueError):
        return [
            (
                str(token.token),
                min(0.0, float(token.logprob)),
                [(str(top.token), min(0.0, float(top.logprob))) for top in token.top_logprobs or []],
            )
            for token in content
        ]
    return []


def require_choices(reply: Any) -> None:
    """:raises ErrorReplyError: if the reply holds an error instead; ValueError: if it holds neither."""
    if isinstance(getattr(reply, "choices", None), list) and reply.choices:
        return
    if error := getattr(reply, "error", None):
        raise ErrorReplyError(error)
    other_fields = getattr(reply, "model_extra", None)
    raise ValueError(f"a reply without choices{f': {other_fields}'[:200] if other_fields else ''}")


def describe_error(error: Exception) -> str:
    """Text of an error, with what its reply's body says if the client leaves that out."""
    text, body = str(error), getattr(error, "body", None)
    if isinstance(body, Mapping) and isinstance(body.get("detail"), list):  # the form of FastAPI
        items = [item for item in body["detail"] if isinstance(item, Mapping)]
        detail = "; ".join(f"{'.'.join(map(str, item.get('loc') or ()))}: {item.get('msg')}" for item in items)
    elif isinstance(body, Mapping) and isinstance(body.get("detail"), Mapping):  # the form of System One
        detail = str(body["detail"].get("message") or body["detail"])
    elif isinstance(body, Mapping):
        detail = str(body.get("message") or body.get("detail") or json.dumps(body, default=str))
    else:
        detail = str(body or "")
    return text if detail in text else f"{text} - {detail}"


def read_retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait by the header Retry-After: a number, or a date (RFC 9110, §10.2.3); 0 without the header."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return 0.0


def _strip(text: str) -> str:
    return text.strip(" \t\r\n\"'`*.!")


def _action_start(text: str) -> int:
    """Position in an answer at which the action begins."""
    match = _BEFORE_ACTION.match(text)
    return match.end() if match else 0


def _matching_actions(actions: Sequence[str], prefix: str) -> list[int]:
    """The actions that begin with ``prefix``; else the longest action that ``prefix`` begins with."""
    begun = [i for i, action in enumerate(actions) if action.startswith(prefix)]
    if begun:
        return begun
    complete = [
        i for i, action in enumerate(actions) if prefix.startswith(action) and _END_OF_WORD.match(prefix[len(action) :])
    ]
    return sorted(complete, key=lambda i: len(actions[i]))[-1:]


def _add_prob(probs: Array, actions: Sequence[str], prefix: str, prob: float) -> None:
    """Share ``prob`` among the actions that ``prefix`` leads to, in place."""
    matching = _matching_actions(actions, prefix)
    probs[matching] += prob / max(1, len(matching))
