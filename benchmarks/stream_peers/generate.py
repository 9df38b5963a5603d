"""Runs in river's environment: rows of its generators, whose concept changes at given rows.

``python generate.py OUT.npz < JOB`` reads a JSON object from its standard input and writes ``inputs`` (float64
``[n, D]``), ``labels`` (int64 ``[n]``) and ``names`` ``[D]``:

- ``generator``: class of ``river.datasets.synth``;
- ``concepts``: keyword arguments of the generator, one entry a concept;
- ``order``: concepts in the order in which they hold, as indices; a concept that comes back goes on with new rows;
- ``positions``: the rows at which the next concept of ``order`` is as frequent as the last one;
- ``width``: length of a transition in rows, as in river's ``ConceptDriftStream``;
- ``rows``: how many;
- ``seed``: of the transitions.

``ConceptDriftStream`` would repeat the rows of a concept that comes back, so its rule (Bifet, Holmes, Kirkby and
Pfahringer 2011, "Data Stream Mining: A Practical Approach", §2.7.1: sigmoid of 4 (row − position) / width) is applied
here to generators that go on.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from river.datasets import synth


def main() -> None:
    """Write the rows of the job."""
    job, out = json.load(sys.stdin), sys.argv[1]
    generators = [iter(getattr(synth, job["generator"])(**concept)) for concept in job["concepts"]]
    samples = [next(generators[concept]) for concept in concepts_by_row(job)]
    np.savez(
        out,
        inputs=np.array([[float(value) for value in x.values()] for x, _ in samples]),
        labels=np.array([int(y) for _, y in samples], dtype=np.int64),
        names=np.array([str(name) for name in samples[0][0]]),
    )


def concepts_by_row(job: dict[str, Any]) -> Iterator[int]:
    """The concept that each row is drawn from."""
    rng = random.Random(job["seed"])
    for row in range(job["rows"]):
        index = 0
        for position in job["positions"]:
            slope = max(-700.0, min(700.0, 4.0 * (row - position) / job["width"]))
            index += rng.random() < 1 / (1 + math.exp(-slope))
        yield job["order"][index]


if __name__ == "__main__":
    main()
