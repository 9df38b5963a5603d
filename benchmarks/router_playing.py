"""Plays a contender through the stages of a stream; see :mod:`benchmarks.router` for the protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.router_data import NO_ACTION, Stream, Task
from benchmarks.router_peers.models import FrozenEncoder, Lesson, Model, StaticTokens, TfIdf, encoder_bytes, encoder_ms
from benchmarks.router_peers.ours import OurStudent
from benchmarks.router_peers.rules import Obedience, OurPromise, PointThreshold, Rule
from benchmarks.router_peers.tools import TracerOwn, TracerScore, play_jevstiller

__all__ = ["CONTENDERS", "OURS", "Contender", "play"]

OURS = "stillhouse"
HELD_ROWS = 2000
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
    :ivar before_reaction: of ``allowed``, those before the rule reacted: how many, and how many disagree.
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

    :ivar learns_held: whether it splits what it learns from itself, and so gets the held rows too.
    :ivar of_all: whether its promise limits the disagreements among all sentences, not among its answers.
    :ivar hashed: of a jevstiller: whether it has its own encoder. None: it is no jevstiller.
    :ivar tasks: where it takes part. The hashed jevstiller's training takes a quarter of an hour on CLINC150.
    """

    name: str
    model: Callable[[Lesson], Model] | None = None
    rule: Callable[[], Rule] = OurPromise
    learns_held: bool = False
    of_all: bool = False
    hashed: bool | None = None
    tasks: tuple[str, ...] = ("banking77", "clinc150")


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(OURS, OurStudent),
        Contender("TF-IDF, own", TfIdf, PointThreshold),
        Contender("TF-IDF, ours", TfIdf),
        Contender("static tokens, own", StaticTokens, PointThreshold),
        Contender("static tokens, ours", StaticTokens),
        Contender("jevstiller hashed, own", of_all=True, hashed=True, tasks=("banking77",)),
        Contender("jevstiller, own", of_all=True, hashed=False),
        Contender("MiniLM, own", FrozenEncoder, PointThreshold),
        Contender("MiniLM, ours", FrozenEncoder),
        Contender("tracer, own", TracerOwn, Obedience, learns_held=True),
        Contender("tracer, ours", TracerScore),
    )
}


def play(contender: Contender, stream: Stream) -> dict[str, Any]:
    """The stages of a contender after the first, its size (bytes), its latency (ms) and its accuracy on ``test``."""
    if contender.hashed is not None:
        return _play_jevstiller(stream, contender.hashed)
    assert contender.model is not None
    answers, texts, vectors = stream.answers, stream.texts, stream.vectors
    is_named = answers != NO_ACTION
    first = np.flatnonzero(stream.stage == 0)
    learned, held = first[~stream.held[first]].tolist(), first[stream.held[first]].tolist()
    local: list[int] = []
    rule, first_choice = contender.rule(), np.full(len(texts), NO_ACTION)
    stages, model = [], None
    for number in range(1, len(stream.stages)):
        if model is not None:
            model.close()
        known = sorted([*learned, *held]) if contender.learns_held else learned
        lesson = _make_lesson(stream, [row for row in known if is_named[row]], local)
        model = contender.model(lesson)
        recent = np.array(held[-HELD_ROWS:])
        choice, confidence = model.choose(texts[recent].tolist(), vectors[recent])
        rule.fit(lesson.texts, texts[recent].tolist(), confidence, choice == answers[recent])
        rows = np.flatnonzero(stream.stage == number)
        choice, confidence = model.choose(texts[rows].tolist(), vectors[rows])
        if number == 1:
            later = np.flatnonzero(stream.stage > 0)
            first_choice[later] = model.choose(texts[later].tolist(), vectors[later])[0]
        novelty, agrees = rule.novelties(texts[rows].tolist()), choice == answers[rows]
        allowed, asked, reacted = (np.zeros(len(rows), dtype=bool) for _ in range(3))
        for index, row in enumerate(rows.tolist()):
            sure, new, audited = float(confidence[index]), float(novelty[index]), bool(stream.audited[row])
            reacted[index], everything = rule.reacted, rule.asks_all
            allowed[index] = rule.may_answer(sure, new)
            asked[index] = audited or everything or not allowed[index]
            if not asked[index]:
                local.append(row)
                continue
            (held if audited or (everything and stream.held[row]) else learned).append(row)
            rule.observe(sure, bool(agrees[index]), new, audited or everything)
        stages.append(_stage_result(stream, rows, choice, allowed, asked, reacted, first_choice[rows]))
    assert model is not None
    result = {"stages": stages, "bytes": model.bytes, "ms": model.ms, **_test_accuracy(model, stream.task)}
    model.close()
    return result


def _play_jevstiller(stream: Stream, hashed: bool) -> dict[str, Any]:
    played = play_jevstiller(stream, hashed)
    stages = []
    for number in range(1, len(stream.stages)):
        rows = np.flatnonzero(stream.stage == number)
        arrays = (played[name][rows] for name in ("choice", "allowed", "asked", "reacted", "first"))
        stages.append(_stage_result(stream, rows, *arrays))
    encoder = (0, 0.0) if hashed else (encoder_bytes(), encoder_ms())
    return {"stages": stages, "bytes": int(played["bytes"]) + encoder[0], "ms": float(played["ms"]) + encoder[1]}


def _stage_result(
    stream: Stream, rows: Array, choice: Array, allowed: Array, asked: Array, reacted: Array, first_choice: Array
) -> dict[str, Any]:
    answers, labels = stream.answers[rows], stream.labels[rows]
    disagrees, early = choice != answers, allowed & ~reacted
    result = StageResult(
        rows=len(rows),
        allowed=int(allowed.sum()),
        disagreements=int((allowed & disagrees).sum()),
        asked=int(asked.sum()),
        right_always=int((answers == labels).sum()),
        right=int((np.where(asked, answers, choice) == labels).sum()),
        right_never=int((first_choice == labels).sum()),
        before_reaction=(int(early.sum()), int((early & disagrees).sum())),
    )
    return asdict(result)


def _make_lesson(stream: Stream, learned: Sequence[int], local: Sequence[int]) -> Lesson:
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


def _test_accuracy(model: Model, task: Task) -> dict[str, float]:
    """Accuracy of the model and of the language model on the sentences ``test``, against the people's labels."""
    rows = task.part("test")
    if not len(rows):
        return {}
    chosen, labels = task.rows.iloc[rows], task.rows["label"].to_numpy()[rows]
    choice, _ = model.choose(chosen["text"].tolist(), task.vectors[rows])
    teacher = chosen["answer"].to_numpy()
    return {"test_accuracy": float((choice == labels).mean()), "teacher_accuracy": float((teacher == labels).mean())}
