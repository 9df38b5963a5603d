"""The one way into Great Expectations: a data frame, a suite and its parameters in, the results out."""

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

_ByPlace = dict[int, "ExpectationValidationResult"]
"""Results by the place of their expectation in the suite."""

_one_at_a_time = threading.Lock()


@functools.cache
def _batches() -> BatchDefinition[Any]:
    """The one ephemeral context of this process, ready for data frames."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    for name in ("great_expectations", "great_expectations.data_context.types.base"):
        logging.getLogger(name).setLevel(logging.WARNING)  # else it tells of its temporary folder
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    asset = context.data_sources.add_pandas("stillhouse").add_dataframe_asset("window")
    return asset.add_batch_definition_whole_dataframe("whole")


def batch_of(frame: pd.DataFrame) -> Batch:
    """A data frame as Great Expectations takes it; it hashes every value, so one batch serves all suites."""
    with _one_at_a_time:
        return _batches().get_batch(batch_parameters={"dataframe": frame})


def validate(
    batch: Batch, suite: ExpectationSuite, parameters: Mapping[str, Any], *, details: bool = True
) -> list[ExpectationValidationResult]:
    """The result of each expectation of a suite of :func:`~data_checks.suite.build_suite`, in the suite's order.

    :param details: whether what holds has a result too, such as the observed value that Data Docs show. Without, only
        what fails is asked a second time, for ``COMPLETE`` results: that halves the time where little fails.
    """
    from great_expectations import ExpectationSuite

    def ask(suite: ExpectationSuite, result_format: Literal["COMPLETE", "BOOLEAN_ONLY"]) -> _ByPlace:
        found = batch.validate(suite, result_format=result_format, expectation_parameters=dict(parameters))
        return _by_place(found.results)

    with _one_at_a_time:
        by_place = ask(suite, "COMPLETE" if details else "BOOLEAN_ONLY")
        if not details and (failed := [place for place, result in by_place.items() if not result.success]):
            again = ExpectationSuite(name=suite.name, expectations=[suite.expectations[place] for place in failed])
            by_place |= ask(again, "COMPLETE")
    return [by_place[place] for place in sorted(by_place)]


def _by_place(results: Iterable[ExpectationValidationResult]) -> _ByPlace:
    """Great Expectations groups results by column, and puts those that raised an error first."""
    return {
        configuration.meta["place"]: result
        for result in results
        if (configuration := result.expectation_config) is not None and configuration.meta is not None
    }


def error_in(result: ExpectationValidationResult) -> str | None:
    """Why an expectation could not be evaluated, such as values that cannot be compared; None if it was."""
    info: Mapping[str, Any] = result.exception_info or {}
    several: Iterable[Any] = [info] if "raised_exception" in info else info.values()
    return next((str(each["exception_message"]) for each in several if each.get("raised_exception")), None)
