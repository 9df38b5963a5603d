"""The data report as Markdown, for a Prefect artifact."""

from __future__ import annotations

from stillhouse.records import DataReport
from stillhouse.shown import escape_code
from stillhouse.shown import escape_markdown as text

__all__ = ["markdown"]


def markdown(report: DataReport) -> str:
    """Return one line with the result, then a table of the failures, fatal failures first.

    >>> from datetime import UTC, datetime
    >>> from stillhouse.records import Window
    >>> window = Window(name="current", start=datetime(2013, 6, 1, tzinfo=UTC), end=datetime(2013, 6, 8, tzinfo=UTC))
    >>> print(markdown(DataReport(window=window, rows=90, quarantined=2, failures=(), seconds=0.5)).splitlines()[2])
    **The window meets the contract.** 90 rows, 2 in quarantine, 88 kept; checked in 0.50 s.
    """
    if report.skipped_because is not None:
        head = f"**The contract was not checked: {text(report.skipped_because)}** {report.rows:,} rows."
        return f"### Data checks: {report.window}\n\n{head}\n"
    good_rows = report.rows - report.quarantined
    head = "**The window is refused.**" if report.broken else "**The window meets the contract.**"
    lines = [
        f"### Data checks: {report.window}",
        "",
        f"{head} {report.rows:,} rows, {report.quarantined:,} in quarantine, {good_rows:,} kept; "
        f"checked in {report.seconds:.2f} s.",
    ]
    if report.failures:
        lines += ["", "| | column | rows | what | expectation |", "|---|---|---:|---|---|"]
        for failure in sorted(report.failures, key=lambda failure: not failure.fatal):
            lines.append(
                f"| {'refused' if failure.fatal else 'noted'} | {text(failure.column or '(window)')} "
                f"| {failure.rows:,} | {text(failure.text)} | {escape_code(failure.expectation)} |"
            )
    if report.docs:
        lines += ["", f"Every expectation: {escape_code(report.docs)}"]
    return "\n".join(lines) + "\n"
