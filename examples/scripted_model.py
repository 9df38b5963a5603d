"""A scripted "LLM" for the story of the front door: MiniLM with a linear head behind the OpenAI protocol on loopback.

Its head is fitted on CLINC150's split `val`; the story's sentences are those of `train` and `test`. What it says to all
of them is reckoned in one batch before the story begins.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from examples import router
from stillhouse.teachers.heads import fit_head

__all__ = ["EARLY", "LATE", "MODEL", "Story", "make_story", "model_server"]

EARLY, LATE = ("banking", "kitchen_and_dining"), "travel"
"""Domains from the first week on, and the one that arrives later."""
MODEL = "scripted-minilm"
_LATE_SHARE, _STRENGTH, _FOLDS, _SEED = 0.4, 30.0, 3, 7


@dataclass(frozen=True)
class Story:
    """What is sent, and what the scripted model says to it."""

    actions: tuple[str, ...]
    weeks: list[list[str]]
    domains: Mapping[str, str]
    answers: Mapping[str, str]


def make_story(weeks: int, requests: int, arrives: int) -> Story:
    """Draw the sentences of each week, and let the scripted model answer them all in one batch.

    :param requests: of each week.
    :param arrives: the week in which sentences of the domain `LATE` begin.
    """
    domains = {intent: domain for domain, intents in router._domains().items() for intent in intents}
    actions = tuple(intent for intent in router.actions() if domains[intent] in (*EARLY, LATE))
    splits, index = router._splits(), {intent: number for number, intent in enumerate(actions)}
    stream = {text: domains[intent] for split in ("train", "test") for text, intent in splits[split] if intent in index}
    rng = np.random.default_rng(_SEED)
    pools = {late: list(rng.permutation([t for t in stream if (stream[t] == LATE) == late])) for late in (False, True)}
    drawn = []
    for week in range(1, weeks + 1):
        is_late = rng.random(requests) < (_LATE_SHARE if week >= arrives else 0.0)
        drawn.append([str(pools[bool(late)].pop()) for late in is_late])
    examples = [(text, index[intent]) for text, intent in splits["val"] if intent in index]
    sent, teacher, labels = [text for week in drawn for text in week], router.MiniLM(), [k for _, k in examples]
    embeddings = router.embed_with_cache([text for text, _ in examples] + sent, teacher._encode, teacher._cache())
    head = fit_head(embeddings[: len(labels)], np.array(labels), len(actions), _STRENGTH, _FOLDS)
    said = head.probs(embeddings[len(labels) :]).argmax(axis=1)
    return Story(actions, drawn, stream, {text: actions[number] for text, number in zip(sent, said, strict=True)})


@contextlib.contextmanager
def model_server(answers: Mapping[str, str]) -> Iterator[str]:
    """The scripted model behind the OpenAI protocol; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, -1

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            text = request["messages"][-1]["content"]
            message = {"role": "assistant", "content": json.dumps({"intent": answers[text]})}
            usage = {
                "prompt_tokens": 900 + len(text) // 4,
                "completion_tokens": 8,
                "total_tokens": 908 + len(text) // 4,
            }
            body = json.dumps(
                {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL, "usage": usage}
                | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            ).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
