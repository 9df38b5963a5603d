"""The report as Markdown."""

import pytest
from pydantic import ValidationError

from data_checks.report import markdown
from stillhouse.records import CheckFailure, DataReport


def test_good_window_has_no_table(window):
    text = markdown(DataReport(window=window, rows=1200, quarantined=0, seconds=0.31))
    assert "meets the contract" in text and "1,200 rows" in text and "|" not in text


def test_failures_are_a_table_with_fatal_failures_first(window):
    failures = tuple(
        CheckFailure(expectation="expect_x", column=column, rows=3, text=text, fatal=fatal)
        for column, text, fatal in (("temp", "temp: above 50", False), (None, "a|b\nc", True))
    )
    text = markdown(DataReport(window=window, rows=100, quarantined=3, failures=failures, seconds=0.31))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert "The window is refused" in text and "97 kept" in text
    assert table[2] == "| refused | (window) | 3 | a\\|b c | `expect_x` |"
    assert table[3] == "| noted | temp | 3 | temp: above 50 | `expect_x` |"


def test_path_of_the_page_is_shown(window):
    text = markdown(DataReport(window=window, rows=9, quarantined=0, seconds=0.1, docs="data_docs/toy/1.html"))
    assert text.endswith("Every expectation: `data_docs/toy/1.html`\n")


def test_skipped_contract_is_reported(window):
    report = DataReport.skipped(window, 9, " replayed without | Great Expectations ")
    assert report.skipped_because == "replayed without | Great Expectations"
    assert (report.rows, report.quarantined, report.failures, report.broken) == (9, 0, (), False)
    assert DataReport.model_validate_json(report.model_dump_json()) == report
    text = markdown(report)
    assert "The contract was not checked: replayed without \\| Great Expectations" in text and "9 rows" in text
    assert "meets the contract" not in text
    for nothing in ("", "  "):
        with pytest.raises(ValidationError, match="at least 1 character"):
            DataReport.skipped(window, 9, nothing)


def test_old_report_without_the_field_counts_as_checked(window):
    stored = DataReport(window=window, rows=9, quarantined=0, seconds=0.1).model_dump(exclude={"skipped_because"})
    assert DataReport.model_validate(stored).skipped_because is None
