"""Runs in a peer's environment: drift tests of the inputs, without labels, look by look.

``python columns.py evidently|frouros INPUTS.npz JOB.json OUT.json``. The inputs file holds ``<world>|reference`` and
``<world>|<situation>``, rows ``[n, C]`` each.

evidently: its ``DataDriftPreset`` with all defaults, which for numbers and more than 1,000 reference rows means: a
column has drifted if its Wasserstein-1 distance is at least 0.1 reference standard deviations, a dataset if at least
half of its columns have. evidently takes most of a second per look, so the rule is computed here and compared with
evidently on ``check`` looks of each world. frouros: its ``KSTest`` of every column, at the Bonferroni level for 1 % in
10,000 looks.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

Flag = Callable[[np.ndarray], bool]


def evidently_rule(reference: np.ndarray) -> Flag:
    """The default rule of evidently's ``DataDriftPreset``."""
    from scipy.stats import wasserstein_distance

    scale = np.maximum(reference.std(axis=0), 0.001)

    def flag(rows: np.ndarray) -> bool:
        distances = [wasserstein_distance(reference[:, c], rows[:, c]) for c in range(rows.shape[1])]
        return bool((np.array(distances) / scale >= 0.1).mean() >= 0.5)

    return flag


def evidently_report(reference: np.ndarray) -> Flag:
    """evidently's own report."""
    import pandas as pd
    from evidently import Report
    from evidently.presets import DataDriftPreset

    names = [f"c{c}" for c in range(reference.shape[1])]
    before = pd.DataFrame(reference, columns=names)

    def flag(rows: np.ndarray) -> bool:
        report = Report([DataDriftPreset()]).run(pd.DataFrame(rows, columns=names), before).dict()
        return bool(report["metrics"][0]["value"]["share"] >= 0.5)

    return flag


def frouros_ks(reference: np.ndarray) -> Flag:
    """A Kolmogorov-Smirnov test of every column."""
    from frouros.detectors.data_drift import KSTest

    level = 0.01 / 10_000 / reference.shape[1]
    tests = []
    for column in reference.T:
        tests.append(KSTest())
        tests[-1].fit(X=column)

    def flag(rows: np.ndarray) -> bool:
        return any(test.compare(X=column)[0].p_value < level for test, column in zip(tests, rows.T, strict=True))

    return flag


def main() -> None:
    """Write the share of looks with an alarm, by world and scenario."""
    library, inputs_path, job_path, out = sys.argv[1:]
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    inputs = dict(np.load(inputs_path))
    make = {"evidently": evidently_rule, "frouros": frouros_ks}[library]
    results = []
    for world in job["worlds"]:
        flag = make(inputs[f"{world}|reference"])
        full_report = evidently_report(inputs[f"{world}|reference"]) if library == "evidently" else None
        for situation, share in job["column_scenarios"]:
            generator = np.random.default_rng(91)
            flags, agreements = [], []
            for number in range(job["column_looks"]):
                rows = draw_rows(inputs[f"{world}|before"], job["rows_per_look"], generator)
                moved = generator.random(len(rows)) < share
                rows[moved] = draw_rows(inputs[f"{world}|{situation}"], int(moved.sum()), generator)
                flags.append(flag(rows))
                if full_report and number < job["check"]:
                    agreements.append(full_report(rows) == flags[-1])
            results.append(
                {
                    "world": world,
                    "method": f"{library}, columns",
                    "scenario": f"{situation} {share:g}",
                    "alarms_per_look": float(np.mean(flags)),
                    "looks": len(flags),
                    "checked": len(agreements),
                    "rule_agrees": int(np.sum(agreements)),
                }
            )
        print(world, library, "columns", file=sys.stderr)
    Path(out).write_text(json.dumps(results), encoding="utf-8")


def draw_rows(pool: np.ndarray, rows: int, generator: np.random.Generator) -> np.ndarray:
    """Random rows of a pool."""
    return pool[generator.integers(0, len(pool), rows)]


if __name__ == "__main__":
    main()
