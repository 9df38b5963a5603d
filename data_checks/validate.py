"""Validate a data frame with Great Expectations; no other module calls it for results."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.core.batch_definition import BatchDefinition
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult
    from great_expectations.datasource.fluent.interfaces import Batch

__all__ = ["batch_of", "error_in", "validate"]

_ResultsByIndex = dict[int, "ExpectationValidationResult"]
"""Results by the index of their expectation in the suite."""

_validation_lock = threading.Lock()


@functools.cache
def _batches() -> BatchDefinition[Any]:
    """Return the batch definition for data frames in this process's only, ephemeral context."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    for name in ("great_expectations", "great_expectations.data_context.types.base"):
        logging.getLogger(name).setLevel(logging.WARNING)  # it would log the path of its temporary folder
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    asset = context.data_sources.add_pandas("stillhouse").add_dataframe_asset("window")
    return asset.add_batch_definition_whole_dataframe("whole")


def batch_of(frame: pd.DataFrame) -> Batch:
    """Return the batch for a data frame. Making it hashes every value, so reuse one batch for all suites."""
    with _validation_lock:
        return _batches().get_batch(batch_parameters={"dataframe": frame})


def validate(
    batch: Batch, suite: ExpectationSuite, parameters: Mapping[str, Any], *, details: bool = True
) -> list[ExpectationValidationResult]:
    """Return the result of each expectation of a suite from :func:`~data_checks.suite.build_suite`, in suite order.

    :param details: whether passed expectations have details too, such as the observed value that Data Docs show. If
        False, only failed expectations are validated a second time for details, which halves the time if few fail.
    """
    from great_expectations import ExpectationSuite

    def validate_suite(suite: ExpectationSuite, result_format: Literal["COMPLETE", "BOOLEAN_ONLY"]) -> _ResultsByIndex:
        result = batch.validate(suite, result_format=result_format, expectation_parameters=dict(parameters))
        return _by_index(result.results)

    with _validation_lock:
        results = validate_suite(suite, "COMPLETE" if details else "BOOLEAN_ONLY")
        if not details and (failed := [index for index, result in results.items() if not result.success]):
            failed_suite = ExpectationSuite(name=suite.name, expectations=[suite.expectations[i] for i in failed])
            results |= validate_suite(failed_suite, "COMPLETE")
    return [results[index] for index in sorted(results)]


def _by_index(results: Iterable[ExpectationValidationResult]) -> _ResultsByIndex:
    """Index the results: Great Expectations groups them by column, with those that raised an error first."""
    return {
        configuration.meta["place"]: result
        for result in results
        if (configuration := result.expectation_config) is not None and configuration.meta is not None
    }


def error_in(result: ExpectationValidationResult) -> str | None:
    """Return why an expectation could not be evaluated, such as values that cannot be compared; None if it was."""
    info: Mapping[str, Any] = result.exception_info or {}
    exceptions: Iterable[Any] = [info] if "raised_exception" in info else info.values()
    return next((str(e["exception_message"]) for e in exceptions if e.get("raised_exception")), None)
