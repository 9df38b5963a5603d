"""Check a window against the agent's data contract; the result is a report and the rows to quarantine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from data_checks.suite import Part, build_suite, parameters
from data_checks.validate import batch_of, validate
from data_checks.words import structure_failures, value_failures, window_failures
from stillhouse.config import AgentConfig
from stillhouse.data_contract import (
    Reasons,
    bad_share_failures,
    data_report,
    empty_window_failure,
    prepare_rows,
    quarantined_rows,
    repeated_columns_failure,
)
from stillhouse.records import CheckFailure, DataReport, Window

if TYPE_CHECKING:
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult
    from great_expectations.datasource.fluent.interfaces import Batch

    from stillhouse.drift.profile import Profile

__all__ = ["Pages", "check"]

Pages = Literal["always", "on_failure", "never"]


def check(
    rows: pd.DataFrame,
    window: Window,
    config: AgentConfig,
    *,
    reference: Profile | None = None,
    limits: Mapping[str, float] | None = None,
    docs: Path | None = None,
    pages: Pages = "always",
) -> tuple[DataReport, pd.DataFrame]:
    """Check ``rows`` of ``window`` against ``config.observations``. A broken contract is a result, never an error.

    Failures are of three kinds:

    - Fatal failures (``report.broken``) refuse the window: no rows; a column that is missing, repeated or of the wrong
      type; more missing values, unknown categories, broken rules or bad rows than allowed; among the remaining rows, a
      newest row that is too old, or too few or too many rows per day.
    - Bad rows go to quarantine: ``observation_id`` missing or repeated (all copies); ``observed_at`` missing or outside
      ``[start, end)``; a number infinite or out of range; a text too long; a missing value or empty text where none is
      allowed; a category that the contract does not list; repeated values of a ``unique`` list (all copies); a broken
      rule.
    - Drift is only noted.

    :param reference: profile of the champion's training window; if given, drift from it is measured too.
    :param limits: limit of the PSI by column (see :func:`~data_checks.suite.build_suite`).
    :param docs: folder of the Data Docs. A page for this check is added to it, and ``report.docs`` is its path.
    :param pages: which checks get a page: all, none, or only those that refuse a window or quarantine rows.
        A page shows the observed value of every expectation, which more than doubles the time of the check.
    :returns: the report, and the bad rows with their index labels: ``observation_id``, ``observed_at`` and
        ``reasons``, a list such as ``["temp: above 50"]``. The good rows are
        ``rows[~rows["observation_id"].isin(bad["observation_id"])]``.

    >>> from datetime import UTC, datetime
    >>> from stillhouse.config import load
    >>> window = Window(name="current", start=datetime(2013, 6, 1, tzinfo=UTC), end=datetime(2013, 6, 8, tzinfo=UTC))
    >>> report, bad_rows = check(pd.DataFrame(), window, load("flights"))
    >>> report.broken, report.failures[0].text
    (True, 'the window has no rows')
    """
    start = time.perf_counter()
    run = _CheckRun(rows, window, config, reference, limits, details=docs is not None and pages == "always")
    failures, reasons = run.evaluate()
    report = data_report(rows, window, failures, reasons, seconds=time.perf_counter() - start)
    if docs is not None and (pages == "always" or (pages == "on_failure" and (report.broken or report.quarantined))):
        from data_checks.docs import write

        page = write(docs, config.agent, report, run.detailed_results(), shows_values=config.shows_examples)
        report = report.model_copy(update={"docs": str(page)})
    return report, quarantined_rows(rows, reasons)


class _CheckRun:
    """One check: its inputs, and all results of Great Expectations so far."""

    def __init__(
        self,
        rows: pd.DataFrame,
        window: Window,
        config: AgentConfig,
        reference: Profile | None,
        limits: Mapping[str, float] | None,
        details: bool,
    ) -> None:
        self.rows, self.window, self.config = rows, window, config
        self.reference, self.limits, self.details = reference, limits, details
        self.results: list[ExpectationValidationResult] = []

    def evaluate(self) -> tuple[list[CheckFailure], Reasons]:
        """Validate the parts of the suite in turn; a part is skipped if an earlier failure makes it meaningless."""
        if not len(self.rows):
            return [empty_window_failure()], {}
        if repeated := repeated_columns_failure(self.rows):
            return [repeated], {}

        rows = prepare_rows(self.rows, self.config.observations)
        batch = batch_of(rows)
        failures = list(structure_failures(self._validate_part("structure", batch), self.config))
        if any(failure.fatal for failure in failures):
            return failures, {}

        reasons: Reasons = {}
        for result in self._validate_part("values", batch, self.details):
            failures += value_failures(result, rows, reasons)
        failures += bad_share_failures(reasons, len(rows), self.config.observations.max_bad_rows)

        good_rows = batch_of(rows.drop(index=list(reasons))) if reasons else batch
        failures += window_failures(self._validate_part("window", good_rows), self.window, self.config)
        if len(reasons) < len(rows):
            failures += window_failures(self._validate_part("drift", good_rows), self.window, self.config)
        return failures, dict(sorted(reasons.items()))

    def detailed_results(self) -> list[ExpectationValidationResult]:
        """Return results that contain the observed values of passed expectations too; validates again if needed."""
        if not self.details:
            self.results, self.details = [], True
            self.evaluate()
        return self.results

    def _validate_part(self, part: Part, batch: Batch, details: bool = True) -> list[ExpectationValidationResult]:
        suite = build_suite(self.config, part, reference=self.reference, limits=self.limits)
        if not suite.expectations:
            return []
        results = validate(batch, suite, parameters(self.window, self.config.observations), details=details)
        self.results += results
        return results
