"""How much of a language model's traffic a local model answers at a promised agreement, while the traffic drifts.

``python -m benchmarks.router`` takes about eight minutes of one core per seed, and the first time twenty more for
MiniLM's vectors, the teacher of CLINC150 and the peers' environments. ``--quick`` takes under two: a sixth of
BANKING77's stream, three contenders, one seed, no file written. Each contender's result is cached for its seed, so an
interrupted run continues.

**Streams** (:mod:`benchmarks.router_data`): BANKING77 with what a real language model answered, and CLINC150 with its
sentences out of scope. Answers arrive in stages, shares shift, and on CLINC150 there is a flood out of scope. There are
no dates in either: the drift is staged.

**Protocol**, the same for all. In the first stage everything is asked. At the end of each stage a new local model is
fitted, from scratch, on what was answered so far: first answers and those of the sentences that the local model was not
allowed to answer. A fifth of the sentences asked while nothing is answered, and the random audit of later ones, are
learned from by nothing; thresholds are fitted on the newest of these. In a stage, a sentence is answered locally if the
rule allows it, and asked otherwise.

**Rules**: *own* is the tool's (jevstiller, tracer), or for the models that are no tool the smallest threshold above
which the held-out rows agree as promised. *ours* is the promise of stillhouse, with its monitor and its guard against
novel texts.

A stage is a *breach* if more than the promised share of the local answers (rounded up to a whole sentence) disagree
with the language model. jevstiller promises something else, that the disagreements are at most 2 % of *all* sentences,
and is held to that. Coverage is the share of sentences that the rule allows, audited ones included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.distillation_data import CACHE
from benchmarks.report import Goal, begin, print_goals
from benchmarks.router_data import NO_ACTION, Stream, Task, banking77, clinc150, make_stream
from benchmarks.router_peers.models import FrozenEncoder, Lesson, Model, StaticTokens, TfIdf
from benchmarks.router_peers.ours import OurStudent
from benchmarks.router_peers.rules import AGREEMENT, CONFIDENCE, OurPromise, PointThreshold, Rule
from benchmarks.router_peers.tools import TracerOwn, TracerScore, play_jevstiller

CLAIM = (
    "at a promised agreement with a language model, a student of 3 MB answers more of its traffic than any peer of that "
    "size, and keeps the promise while the traffic drifts"
)
MAX_BYTES, MAX_MS = 3_000_000, 0.3
HELD_ROWS = 800
"""Newest blind rows that a threshold is fitted on."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class StageResult:
    """What a contender did in one stage.

    :ivar rows: sentences of the stage.
    :ivar allowed: sentences that the rule let the model answer, audited ones included.
    :ivar disagreements: those of them that the language model answered otherwise.
    :ivar asked: calls of the language model, audits included.
    :ivar right_always: sentences where the language model's answer is the people's label.
    :ivar right: sentences where the answer that was given is.
    :ivar right_never: sentences where the first model's answer is, had it answered everything.
    :ivar before_reaction: of ``allowed``, those before the rule answered less, ``[allowed, disagreements]``.
    """

    rows: int
    allowed: int
    disagreements: int
    asked: int
    right_always: int
    right: int
    right_never: int
    before_reaction: tuple[int, int]


@dataclass(frozen=True)
class Contender:
    """A local model with a rule.

    :ivar of_all: whether its promise limits the disagreements among all sentences, not among its answers.
    """

    name: str
    model: Callable[[Lesson], Model]
    rule: Callable[[], Rule]
    of_all: bool = False


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("stillhouse", OurStudent, OurPromise),
        Contender("TF-IDF, own", TfIdf, PointThreshold),
        Contender("TF-IDF, ours", TfIdf, OurPromise),
        Contender("static tokens, own", StaticTokens, PointThreshold),
        Contender("static tokens, ours", StaticTokens, OurPromise),
        Contender("MiniLM, own", FrozenEncoder, PointThreshold),
        Contender("MiniLM, ours", FrozenEncoder, OurPromise),
    )
}


def play(contender: Contender, stream: Stream) -> dict[str, Any]:
    """The stages of a contender after the first, with its size and latency."""
    answers, labels, texts, vectors = stream.answers, stream.labels, stream.texts, stream.vectors
    is_named = answers != NO_ACTION
    first = np.flatnonzero(stream.stage == 0)
    learned, held = list(first[~stream.held[first]]), list(first[stream.held[first]])
    local: list[int] = []
    rule, first_choice = contender.rule(), np.full(len(texts), -1)
    model: Model | None = None
    stages = []
    for number in range(1, len(stream.stages)):
        lesson = make_lesson(stream, [row for row in learned if is_named[row]], local)
        model = contender.model(lesson)
        recent = np.array(held[-HELD_ROWS:])
        choice, confidence = decide(model, texts[recent], vectors[recent])
        rule.fit(lesson.texts, texts[recent].tolist(), confidence, choice == answers[recent])
        rows = np.flatnonzero(stream.stage == number)
        choice, confidence = decide(model, texts[rows], vectors[rows])
        if number == 1:
            later = np.flatnonzero(stream.stage > 0)
            first_choice[later] = decide(model, texts[later], vectors[later])[0]
        novelty, agrees = rule.novelties(texts[rows]), choice == answers[rows]
        allowed, asked = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
        reaction = len(rows)
        for index, row in enumerate(rows):
            sure, new, blind = float(confidence[index]), float(novelty[index]), bool(stream.audited[row])
            allowed[index] = rule.may_answer(sure, new)
            everything = rule.asks_all
            asked[index] = blind or everything or not allowed[index]
            if not asked[index]:
                local.append(row)
                continue
            if blind or (everything and stream.held[row]):
                held.append(row)
            else:
                learned.append(row)
            rule.observe(sure, bool(agrees[index]), new, blind or everything)
            if rule.reacted and reaction == len(rows):
                reaction = index + 1
        given = np.where(asked, answers[rows], choice)
        early = allowed & (np.arange(len(rows)) < reaction)
        stages.append(
            StageResult(
                rows=len(rows),
                allowed=int(allowed.sum()),
                disagreements=int((allowed & ~agrees).sum()),
                asked=int(asked.sum()),
                right_always=int((answers[rows] == labels[rows]).sum()),
                right=int((given == labels[rows]).sum()),
                right_never=int((first_choice[rows] == labels[rows]).sum()),
                before_reaction=(int(early.sum()), int((early & ~agrees).sum())),
            )
        )
    assert model is not None
    return {
        "stages": [asdict(stage) for stage in stages],
        "bytes": model.bytes,
        "ms": latency(model, texts[:200].tolist()),
        **test_accuracy(model, stream.task),
    }


def make_lesson(stream: Stream, learned: Sequence[int], local: Sequence[int]) -> Lesson:
    rows, others = np.array(learned, dtype=np.int64), np.array(local, dtype=np.int64)
    return Lesson(
        stream.texts[rows].tolist(),
        stream.vectors[rows],
        stream.answers[rows],
        len(stream.task.actions),
        stream.texts[others].tolist(),
        stream.vectors[others],
        stream.seed,
    )


def decide(model: Model, texts: Array, vectors: Array) -> tuple[Array, Array]:
    """The most probable action of each sentence, and its probability."""
    probs = model.probabilities(texts.tolist(), vectors)
    return probs.argmax(axis=1), probs.max(axis=1)


def latency(model: Model, texts: Sequence[str], repeats: int = 5) -> float:
    """CPU time of one decision from the text (ms): the fastest of some rounds over the sentences."""
    rounds = []
    for _ in range(repeats):
        start = time.thread_time()
        for text in texts:
            model.decide(text)
        rounds.append((time.thread_time() - start) / len(texts))
    return 1000 * min(rounds)


def test_accuracy(model: Model, task: Task) -> dict[str, float]:
    """Accuracy of the last model and of the language model on the sentences ``test``, against the people's labels."""
    rows = task.part("test")
    if not len(rows):
        return {}
    chosen, labels = task.rows.iloc[rows], task.rows["label"].to_numpy()[rows]
    choice, _ = decide(model, chosen["text"].to_numpy(), task.vectors[rows])
    teacher = chosen["answer"].to_numpy()
    return {"test_accuracy": float((choice == labels).mean()), "teacher_accuracy": float((teacher == labels).mean())}
