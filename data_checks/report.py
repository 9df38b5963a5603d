"""The data report as Markdown, for a Prefect artifact."""

from __future__ import annotations

from stillhouse.records import DataReport
from stillhouse.shown import code
from stillhouse.shown import markdown as text

__all__ = ["markdown"]


def markdown(report: DataReport) -> str:
    """Return one line with the result, then a table of the failures, fatal failures first."""
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
                f"| {failure.rows:,} | {text(failure.text)} | {code(failure.expectation)} |"
            )
    if report.docs:
        lines += ["", f"Every expectation: {code(report.docs)}"]
    return "\n".join(lines) + "\n"
