"""The one way into Great Expectations: a data frame, a suite and its parameters in, the results out."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.core.batch_definition import BatchDefinition
    from great_expectations.core.expectation_validation_result import (
        ExpectationSuiteValidationResult,
        ExpectationValidationResult,
    )

__all__ = ["error_in", "validate"]

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


def validate(
    frame: pd.DataFrame, suite: ExpectationSuite, parameters: Mapping[str, Any]
) -> ExpectationSuiteValidationResult:
    """One pass over the frame; ``COMPLETE``, because a second pass over what failed costs more than it saves."""
    with _one_at_a_time:
        batch = _batches().get_batch(batch_parameters={"dataframe": frame})
        return batch.validate(suite, result_format="COMPLETE", expectation_parameters=dict(parameters))


def error_in(result: ExpectationValidationResult) -> str | None:
    """Why an expectation could not be evaluated, such as values that cannot be compared; None if it was."""
    info: Mapping[str, Any] = result.exception_info or {}
    several: Iterable[Any] = [info] if "raised_exception" in info else info.values()
    return next((str(each["exception_message"]) for each in several if each.get("raised_exception")), None)
