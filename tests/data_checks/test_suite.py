"""The suite covers the contract, and Great Expectations is imported only when the suite is built."""

import subprocess
import sys

from data_checks.suite import build_suite, required_columns


def test_suite_covers_all_columns_of_the_contract(config):
    suite = build_suite(config)
    asked = {expectation.configuration.kwargs.get("column") for expectation in suite.expectations}
    assert set(required_columns(config)) <= asked
    parts = [len(build_suite(config, part).expectations) for part in ("structure", "values")]
    assert sum(parts) == len(suite.expectations)


def test_suite_contains_the_shares_of_the_contract(config):
    by_rule = {
        (e.configuration.kwargs.get("column"), e.meta["rule"]): e for e in build_suite(config, "values").expectations
    }
    wind, temp, carrier = by_rule["wind", "missing"], by_rule["temp", "missing"], by_rule["carrier", "unknown"]
    assert (wind.mostly, wind.meta["refuse_above"], wind.meta["quarantine"]) == (0.8, 0.2, False)
    assert (temp.mostly, temp.meta["refuse_above"], temp.meta["quarantine"]) == (1.0, 1.0, True)
    assert (carrier.meta["refuse_above"], carrier.meta["quarantine"]) == (0.1, True)
    assert ("dest", "unknown") not in by_rule


def test_import_does_not_load_great_expectations():
    code = "import data_checks.check, data_checks.report, sys; sys.exit('great_expectations' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
