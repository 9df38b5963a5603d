"""Ask a window whether it keeps the agent's data contract: a report, and the rows to set aside."""

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
    """Check ``rows`` of ``window`` against ``config.observations``; a broken contract is a result, never an error.

    Fatal failures (``report.broken``): no rows, a column missing, twice there or of the wrong type, a share of
    missing or unknown values or of rows that break a rule above what is allowed, too large a share of bad rows;
    of the rows that are left: the newest too old, too few or too many a day. Bad rows: no or a repeated
    ``observation_id`` (every copy), no ``observed_at`` or one outside ``[start, end)``, a number out of its range
    or infinite, a text too long, a missing value (or empty text) where none may be, a category that the contract
    does not list, values of a ``unique`` list that come more than once (every copy), a broken rule. Drift is
    neither: it is noted.

    :param reference: a profile of the window that the champion was trained on; with it, drift is measured too.
    :param limits: largest usual PSI by column (see :func:`~data_checks.suite.build_suite`).
    :param docs: folder of Data Docs; a page on this check is added to it, and ``report.docs`` is its path.
    :param pages: which checks get a page there: all, none, or those that refuse a window or set rows aside.
        A page shows what every expectation observed, which takes more than twice the time of the check.
    :returns: the report, and the bad rows on their index labels: ``observation_id``, ``observed_at`` and
        ``reasons``, a list such as ``["temp: above 50"]``. The sound rows are
        ``rows[~rows["observation_id"].isin(bad["observation_id"])]``.
    """
    start = time.perf_counter()
    checking = _Checking(rows, window, config, reference, limits, details=docs is not None and pages == "always")
    failures, reasons = checking.examine()
    report = data_report(rows, window, failures, reasons, seconds=time.perf_counter() - start)
    if docs is not None and (pages == "always" or (pages == "on_failure" and (report.broken or report.quarantined))):
        from data_checks.docs import write

        report = report.model_copy(update={"docs": str(write(docs, config.agent, report, checking.detailed()))})
    return report, quarantined_rows(rows, reasons)


class _Checking:
    """One check under way: what it is asked, and every result of Great Expectations so far."""

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

    def examine(self) -> tuple[list[CheckFailure], Reasons]:
        """The parts of the suite in turn, each where the one before it lets it make sense."""
        if not len(self.rows):
            return [empty_window_failure()], {}
        if repeated := repeated_columns_failure(self.rows):
            return [repeated], {}

        rows = prepare_rows(self.rows, self.config.observations)
        batch = batch_of(rows)
        failures = list(structure_failures(self._ask("structure", batch), self.config))
        if any(failure.fatal for failure in failures):
            return failures, {}

        reasons: Reasons = {}
        for result in self._ask("values", batch, self.details):
            failures += value_failures(result, rows, reasons)
        failures += bad_share_failures(reasons, len(rows), self.config.observations.max_bad_rows)

        sound = batch_of(rows.drop(index=list(reasons))) if reasons else batch
        failures += window_failures(self._ask("window", sound), self.window, self.config)
        if len(reasons) < len(rows):
            failures += window_failures(self._ask("drift", sound), self.window, self.config)
        return failures, dict(sorted(reasons.items()))

    def detailed(self) -> list[ExpectationValidationResult]:
        """The results with what was observed where an expectation holds; asked again if they were not asked for."""
        if not self.details:
            self.results, self.details = [], True
            self.examine()
        return self.results

    def _ask(self, part: Part, batch: Batch, details: bool = True) -> list[ExpectationValidationResult]:
        suite = build_suite(self.config, part, reference=self.reference, limits=self.limits)
        if not suite.expectations:
            return []
        results = validate(batch, suite, parameters(self.window, self.config.observations), details=details)
        self.results += results
        return results
