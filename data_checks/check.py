"""Ask a window whether it keeps the agent's data contract: a report, and the rows to set aside."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from data_checks.suite import Part, build_suite, parameters
from data_checks.validate import validate
from data_checks.words import structure_failures, value_failures, window_failures
from stillhouse.config import AgentConfig
from stillhouse.data_contract import Reasons, failure, prepared, too_many_bad
from stillhouse.records import CheckFailure, DataReport, Window

if TYPE_CHECKING:
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult

    from stillhouse.drift.profile import Profile

__all__ = ["check"]

QUARANTINE_COLUMNS = ("observation_id", "observed_at", "reasons")


def check(
    rows: pd.DataFrame,
    window: Window,
    config: AgentConfig,
    *,
    reference: Profile | None = None,
    limits: Mapping[str, float] | None = None,
    docs: Path | None = None,
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
    :returns: the report, and the bad rows on their index labels: ``observation_id``, ``observed_at`` and
        ``reasons``, a list such as ``["temp: above 50"]``. The sound rows are
        ``rows[~rows["observation_id"].isin(bad["observation_id"])]``.
    """
    start = time.perf_counter()
    checking = _Checking(rows, window, config, reference, limits)
    failures, reasons = checking.examine()
    report = DataReport(
        window=window,
        rows=len(rows),
        quarantined=len(reasons),
        failures=tuple(sorted(failures, key=lambda failure: not failure.fatal)),
        seconds=time.perf_counter() - start,
    )
    if docs is not None:
        from data_checks.docs import write

        report = report.model_copy(update={"docs": str(write(docs, config.agent, report, checking.results))})
    return report, _quarantine(rows, reasons)


class _Checking:
    """One check under way: what it is asked, and every result of Great Expectations so far."""

    def __init__(
        self,
        rows: pd.DataFrame,
        window: Window,
        config: AgentConfig,
        reference: Profile | None,
        limits: Mapping[str, float] | None,
    ) -> None:
        self.rows, self.window, self.config = rows, window, config
        self.reference, self.limits = reference, limits
        self.results: list[ExpectationValidationResult] = []

    def examine(self) -> tuple[list[CheckFailure], Reasons]:
        """The parts of the suite in turn, each where the one before it lets it make sense."""
        if not len(self.rows):
            return [failure("window_not_empty", None, 0, "the window has no rows", fatal=True)], {}
        if repeated := self.rows.columns[self.rows.columns.duplicated()].unique().tolist():
            text = f"columns {repeated} are there more than once"
            return [failure("unique_columns", None, 0, text, fatal=True)], {}

        rows = prepared(self.rows, self.config.observations)
        failures = list(structure_failures(self._ask("structure", rows), self.config))
        if any(failure.fatal for failure in failures):
            return failures, {}

        reasons: Reasons = {}
        for result in self._ask("values", rows):
            failures += value_failures(result, rows, reasons)
        failures += too_many_bad(reasons, len(rows), self.config.observations.max_bad_rows)

        sound = rows.drop(index=list(reasons))
        failures += window_failures(self._ask("window", sound), self.window, self.config)
        if len(sound):
            failures += window_failures(self._ask("drift", sound), self.window, self.config)
        return failures, dict(sorted(reasons.items()))

    def _ask(self, part: Part, frame: pd.DataFrame) -> list[ExpectationValidationResult]:
        suite = build_suite(self.config, part, reference=self.reference, limits=self.limits)
        if not suite.expectations:
            return []
        results = validate(frame, suite, parameters(self.window, self.config.observations)).results
        self.results += results
        return results


def _quarantine(rows: pd.DataFrame, reasons: Reasons) -> pd.DataFrame:
    if not reasons:
        return pd.DataFrame(columns=list(QUARANTINE_COLUMNS))
    bad = rows.iloc[list(reasons)][["observation_id", "observed_at"]].copy()
    bad["reasons"] = pd.Series(list(reasons.values()), index=bad.index, dtype=object)
    return bad
