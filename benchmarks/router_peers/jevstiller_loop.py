"""Plays a stream through jevstiller's own loop; run by :mod:`benchmarks.router_peers.tools` in its environment.

``python jevstiller_loop.py IN.npz OUT.npz``. Its defaults, except that training is started by hand at the end of each
stage and a trained version is promoted at once (its shadow would need a stage of its own), that the audit is the
stream's, and that a class counts as rare below 10 examples (default 50: most of BANKING77's would be rare).
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from jevstiller import Config, Jevstiller, Task
from jevstiller.encoders import HashEncoder
from jevstiller.teachers import TeacherOutput

BATCH = 20
NO_PRODUCTION = -1.0


class Recorded:
    """An encoder that knows the vectors of all texts."""

    id = "recorded-minilm"

    def __init__(self, texts, vectors):
        self.rows, self.vectors, self.dim = {t: i for i, t in enumerate(texts)}, vectors, vectors.shape[1]

    def encode(self, texts):
        return self.vectors[[self.rows[t] for t in texts]]


class Silent:
    """The teacher is asked by this script; jevstiller needs the object only."""

    name = "recorded"

    def classify(self, texts, task):
        raise NotImplementedError


def main(source: str, target: str) -> None:
    logging.disable(logging.WARNING)
    data = np.load(source)
    settings = json.loads(str(data["settings"]))
    texts, answers, stage = data["texts"].tolist(), data["answers"], data["stage"]
    labels = [f"a{i}" for i in range(settings["actions"])]
    encoder = HashEncoder() if settings["hashed"] else Recorded(texts, data["vectors"])
    config = Config(
        training="manual",
        audit_rate=settings["audit"],
        min_samples_per_class=10,
        min_new_samples=10**9,
        ood_max_ref=settings["ood_max_ref"],
        seed=settings["seed"],
        train_threads=1,
        min_free_disk_mb=0,
    )
    count = len(texts)
    choice, allowed, asked = np.full(count, -1), np.zeros(count, bool), np.zeros(count, bool)
    first, reacted = np.full(count, -1), np.zeros(count, bool)
    with tempfile.TemporaryDirectory() as folder:
        task = Task("stream", "Which?", labels, target_agreement=settings["agreement"])
        loop = Jevstiller(task, Silent(), folder, encoder=encoder, config=config)
        index = {label: i for i, label in enumerate(labels)}
        size = 0
        for number in range(int(stage.max()) + 1):
            if number:
                report = loop.train_now()
                if report.accepted:
                    loop.promote(report.version)
                    size = sum(f.stat().st_size for f in Path(folder).rglob(f"{report.version.replace(':', '-')}/*"))
                if number == 1 and loop._prod is not None:
                    rows = np.flatnonzero(stage > 0)
                    first[rows] = [index[p] for p in loop._run(loop._prod, encoder.encode([texts[i] for i in rows]))[3]]
            rows = np.flatnonzero(stage == number)
            for begin in range(0, len(rows), BATCH):
                batch = rows[begin : begin + BATCH]
                routed = loop.route([texts[i] for i in batch])
                production, cascading = loop._prod, loop.mode == "cascade"
                reacted[batch] = loop.forced_fallback
                for i, record in zip(batch, routed.recs, strict=True):
                    if production is not None and cascading:
                        choice[i] = index[record.student_label]
                        allowed[i] = production.policy.accepts(
                            np.array([record.student_confidence]),
                            np.array([record.ood_score]),
                            np.array([record.student_label], dtype=object),
                        )[0]
                outputs = []
                for i in np.array(batch)[routed.to_teacher] if routed.to_teacher else []:
                    asked[i] = True
                    if answers[i] < 0:
                        outputs.append(ValueError("no label"))
                    else:
                        label = labels[answers[i]]
                        outputs.append(TeacherOutput(label, {**dict.fromkeys(labels, 0.0), label: 1.0}, 1.0, model="m"))
                loop.complete(routed, outputs)
                loop.maintain()
        times = []
        if loop._prod is not None:
            for _ in range(5):
                start = time.thread_time()
                for text in texts[:200]:
                    loop._run(loop._prod, encoder.encode([text]))
                times.append((time.thread_time() - start) / 200)
        loop.close()
    np.savez(
        target,
        choice=choice,
        allowed=allowed,
        asked=asked,
        first=first,
        reacted=reacted,
        bytes=size,
        ms=1000 * min(times, default=NO_PRODUCTION),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
