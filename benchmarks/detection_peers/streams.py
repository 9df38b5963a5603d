"""Runs in river's environment: rows of its generators, before and after a change of concept.

``python streams.py ROWS OUT.npz`` writes ``<world>|inputs|<when>`` and ``<world>|labels|<when>``.
"""

import sys

import numpy as np
from river.datasets import synth

WORLDS = {
    "sea": lambda after: synth.SEA(variant=3 if after else 2, noise=0.05, seed=11 + after),
    "rbf": lambda after: synth.RandomRBF(n_features=10, n_centroids=50, seed_model=21 + after, seed_sample=24 + after),
    "agrawal": lambda after: synth.Agrawal(classification_function=int(after), perturbation=0.05, seed=31 + after),
}


def main() -> None:
    """Write all worlds."""
    rows, out = int(sys.argv[1]), sys.argv[2]
    arrays = {}
    for name, make in WORLDS.items():
        for when, after in (("before", False), ("after", True)):
            samples = list(make(after).take(rows))
            arrays[f"{name}|inputs|{when}"] = np.array([[float(v) for v in x.values()] for x, _ in samples])
            arrays[f"{name}|labels|{when}"] = np.array([int(y) for _, y in samples])
    np.savez(out, **arrays)


if __name__ == "__main__":
    main()
