"""Results in the suite's order, with details on request."""

from __future__ import annotations

from data_checks.suite import build_suite, parameters
from data_checks.validate import batch_of, validate


def test_passed_expectations_have_details_only_on_request(rows, window, config):
    rows.loc[3, "temp"] = 99
    rows.loc[4, "carrier"] = "ZZ"
    batch, suite = batch_of(rows), build_suite(config, "values")
    given = parameters(window, config.observations)
    brief, full = (validate(batch, suite, given, details=details) for details in (False, True))
    for results in (brief, full):
        kinds = [result.expectation_config.type for result in results]
        assert kinds == [expectation.expectation_type for expectation in suite.expectations]
    assert [result.success for result in brief] == [result.success for result in full]
    failed = [index for index, result in enumerate(full) if not result.success]
    assert len(failed) == 2
    for index, (brief_result, full_result) in enumerate(zip(brief, full, strict=True)):
        assert brief_result.result == (full_result.result if index in failed else {})
        assert full_result.result["element_count"] == 100


def test_expectation_that_raises_an_error_keeps_its_index(rows, window, config):
    suite, given = build_suite(config, "values"), parameters(window, config.observations)
    batch = batch_of(rows.assign(carrier=[["AA"]] * 100))
    for details in (False, True):
        results = validate(batch, suite, given, details=details)
        assert [result.expectation_config.meta["place"] for result in results] == list(range(len(suite.expectations)))
        assert not all(result.success for result in results)
