"""The compared tools, each in an environment of its own: jevstiller and tracer-llm.

Both get MiniLM's vectors, the sentence encoder that there is; jevstiller recommends bge-small, which is of the same
size. *jevstiller, hashed* has its own encoder of hashed words and pairs, which needs no model, and 1,000 reference rows
instead of 5,000, so that it is below 3 MB.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.peers import peer
from benchmarks.router_data import Stream
from benchmarks.router_peers.models import Array, Lesson, encoder_bytes, encoder_ms
from benchmarks.router_peers.rules import AGREEMENT

__all__ = ["TracerOwn", "TracerScore", "play_jevstiller"]

FOLDER = Path(__file__).parent
JEVSTILLER, TRACER = ("jevstiller==0.5.3",), ("tracer-llm==0.3.3",)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def play_jevstiller(stream: Stream, hashed: bool) -> dict[str, Array]:
    """What jevstiller's own loop does with each row of a stream.

    ``choice`` (its model's, −1 without a model), ``allowed`` (its policy lets it answer), ``asked`` and ``reacted``
    (it has fallen back to the teacher), each ``[n]``; ``first`` (choice of its first model for later rows); ``bytes``
    and ``ms``, without those of MiniLM.
    """
    settings = {
        "actions": len(stream.task.actions),
        "hashed": hashed,
        "ood_max_ref": 1000 if hashed else 5000,
        "audit": stream.audit,
        "seed": stream.seed,
        "agreement": AGREEMENT,
    }
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        texts = np.array([str(text) for text in stream.texts])
        arrays = {"texts": texts, "answers": stream.answers, "stage": stream.stage}
        np.savez(source, vectors=stream.vectors, settings=json.dumps(settings), **arrays)
        command = [str(peer("jevstiller", JEVSTILLER)), str(FOLDER / "jevstiller_loop.py"), str(source), str(target)]
        subprocess.run(command, check=True, env=ONE_THREAD)
        with np.load(target) as stored:
            return dict(stored)


class _Tracer:
    """A tracer-llm in a process of its own."""

    mode: str

    def __init__(self, lesson: Lesson) -> None:
        self.folder = tempfile.TemporaryDirectory()
        source = Path(self.folder.name) / "fit.npz"
        arrays = {"vectors": lesson.vectors, "answers": lesson.answers, "texts": np.array(lesson.texts)}
        np.savez(source, target=AGREEMENT, **arrays)
        command = [str(peer("tracer", TRACER)), str(FOLDER / "tracer_worker.py"), str(source), self.mode]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ONE_THREAD
        )
        self.bytes, self.ms = encoder_bytes(), encoder_ms()
        self.size = 0

    def choose(self, texts: Sequence[str], vectors: Array) -> tuple[Array, Array]:
        """Choices ``[n]`` (−1: none) and confidences ``[n]``."""
        source, target = (Path(self.folder.name) / name for name in ("ask.npz", "answer.npz"))
        np.savez(source, vectors=vectors)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{source} {target}\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            raise SystemExit("tracer's process has ended: its message is above")
        with np.load(target) as stored:
            self.bytes, self.ms = encoder_bytes() + int(stored["size"]), encoder_ms() + float(stored["ms"])
            return stored["choice"].astype(np.int64), stored["confidence"].astype(np.float64)

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


class TracerOwn(_Tracer):
    """``tracer.fit`` and its router: the confidence is 1 where it handles a sentence, else 0."""

    mode = "own"


class TracerScore(_Tracer):
    """Its model, with the score of its acceptor as confidence."""

    mode = "score"
