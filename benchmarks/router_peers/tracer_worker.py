"""A fitted tracer-llm; run by :mod:`benchmarks.router_peers.tools` in its environment.

``python tracer_worker.py FIT.npz MODE``, then a line ``IN.npz OUT.npz`` on standard input for each set of vectors.

In mode ``own``, ``tracer.fit`` with its defaults at the target, and its router decides. In mode ``score`` the first
stage of its method ``l2d``: the best model of its zoo, and the acceptor's score as confidence. The zoo is that of the
command line's default (linear models and small networks: its trees are an option, and take minutes for 77 classes). Its
three methods choose from the zoo with the same data and seeds, so equal fits are made once.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tracer
from tracer.api import fit as fit_traces
from tracer.fit import pipeline

TREES = ("dt", "rf", "et", "gbt", "xgb")
LOW_TARGET = 0.5


def remember_fits() -> None:
    search, known = pipeline.search_best_surrogate, {}

    def remembered(*arrays, on_candidate=None, skip=()):
        key = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
        if key not in known:
            known[key] = search(*arrays, skip=skip)
        return known[key]

    pipeline.search_best_surrogate = remembered


def fit(source: str, mode: str, folder: Path):
    """A function from vectors to choices, confidences, and the size of the fitted files."""
    data = np.load(source)
    vectors, answers, target = data["vectors"], data["answers"], float(data["target"])
    if mode == "score":
        labels = np.unique(answers)
        split = pipeline._split_buffer(vectors, np.searchsorted(labels, answers))
        stage = pipeline.build_l2d(split, LOW_TARGET, skip=TREES)["stages"][0]

        def decide(x):
            chosen, _, scores = pipeline.apply_stage(stage, x)
            return labels[chosen], scores

        return decide
    traces = folder / "traces.jsonl"
    texts = data["texts"].tolist()
    lines = (json.dumps({"input": t, "teacher": f"{a:04d}"}) for t, a in zip(texts, answers.tolist(), strict=True))
    traces.write_text("\n".join(lines), encoding="utf-8")
    config = tracer.FitConfig(
        target_teacher_agreement=target, frontier_targets=(target,), skip_candidates=TREES, verbose=False
    )
    fit_traces(traces, folder / "artifact", embeddings=vectors, config=config)
    try:
        router = tracer.load_router(folder / "artifact")
    except ValueError:  # nothing met the target

        def decide_nothing(x):
            return np.full(len(x), -1), np.zeros(len(x))

        return decide_nothing

    def decide_routed(x):
        out = router.predict_batch(x)
        return np.array([-1 if label is None else int(label) for label in out["labels"]]), out["handled"].astype(float)

    return decide_routed


def main(source: str, mode: str) -> None:
    remember_fits()
    with tempfile.TemporaryDirectory() as folder:
        decide = fit(source, mode, Path(folder))
        size = sum(f.stat().st_size for f in Path(folder).rglob("artifact/*") if f.suffix == ".joblib")
        for line in sys.stdin:
            vectors_file, target = line.split()
            vectors = np.load(vectors_file)["vectors"]
            choice, confidence = decide(vectors)
            start = time.thread_time()
            for row in vectors[:50]:
                decide(row[None])
            np.savez(target, choice=choice, confidence=confidence, size=size, ms=20 * (time.thread_time() - start))
            print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
