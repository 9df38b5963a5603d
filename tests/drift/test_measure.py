"""A whole measurement, the output column and the disagreement."""

import numpy as np
import pandas as pd

from stillhouse.config import NumberColumn
from stillhouse.drift.measure import confidence, measure
from stillhouse.drift.profile import build
from stillhouse.records import DriftReport


def test_confidence_is_the_positive_probability_or_the_top_one():
    assert confidence(np.array([[0.8, 0.2], [0.1, 0.9]])).tolist() == [0.2, 0.9]
    assert confidence(np.array([[0.5, 0.2, 0.3]])).tolist() == [0.5]


def test_measure_gathers_columns_output_and_records(make):
    rng = np.random.default_rng(0)
    columns = {"temp": NumberColumn(type="number")}
    reference = pd.DataFrame({"temp": rng.normal(size=3000)})
    current = pd.DataFrame({"temp": rng.normal(size=500) + 1})
    before, now = rng.beta(2, 5, 3000).astype("float32"), rng.beta(5, 2, 500).astype("float32")
    report = measure(
        "toy", "toy@3", make.reference, make.current, build(reference, columns), current,
        confidence_reference=before, confidence_current=now,
        disagreement=make.disagreement(0.2), quality=make.quality(0.7),
    )  # fmt: skip
    assert (report.reference_rows, report.current_rows) == (3000, 500)
    assert report.columns[0].psi > 0.5
    assert report.output is not None and report.output.column == "confidence" and report.output.psi > 0.5
    assert report.disagreement == make.disagreement(0.2) and report.disagreement_reference is None
    assert DriftReport.model_validate_json(report.model_dump_json()) == report


def test_without_both_sides_the_output_is_not_measured(make):
    rows = pd.DataFrame({"temp": np.arange(50.0)})
    profile = build(rows, {"temp": NumberColumn(type="number")})
    report = measure("toy", "toy@3", make.reference, make.current, profile, rows, confidence_current=np.ones(50))
    assert report.output is None
