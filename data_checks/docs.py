"""Data Docs: the results of a check as self-contained HTML pages, which open from a folder and from MLflow.

Great Expectations' own renderers and templates render each expectation and its observed value. The page around them is
ours, because theirs loads style sheets, scripts and images from seven internet hosts and is unreadable without them.
Our pages load nothing.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stillhouse.files import write_atomic
from stillhouse.records import DataReport

if TYPE_CHECKING:
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult
    from great_expectations.render.view.view import DefaultJinjaPageView

__all__ = ["page_html", "write"]

MAX_PAGES = 60
"""Maximum number of pages in a folder; older pages are deleted."""

WINDOW_SECTION = "The window"
_NOT_NULL = "expect_column_values_to_not_be_null"


def page_html(
    agent: str,
    report: DataReport,
    results: Sequence[ExpectationValidationResult],
    home: str | None = None,
    *,
    shows_values: bool = True,
) -> str:
    """Return one self-contained HTML document of about 100 kB.

    :param results: results of Great Expectations for all parts of the suite.
    :param home: link to the parent page.
    :param shows_values: whether values that break the contract are shown.
    """
    from great_expectations.render.renderer.column_section_renderer import ValidationResultsColumnSectionRenderer

    results = [_without_row_details(result, shows_values) for result in results]
    sections, renderer = _sections(results), cast(Any, ValidationResultsColumnSectionRenderer())
    return str(
        _view()
        .env.get_template("check.html")
        .render(
            agent=agent,
            report=report,
            window=_window(report),
            entry=_entry(report),
            home=home,
            passed=sum(bool(result.success) for result in results),
            total=len(results),
            contents=[(name, *_flags(section)) for name, section in sections.items()],
            sections=[renderer.render(section).to_json_dict() for section in sections.values()],
        )
    )


def write(
    folder: Path,
    agent: str,
    report: DataReport,
    results: Sequence[ExpectationValidationResult],
    *,
    shows_values: bool = True,
) -> Path:
    """Write the page of one check into ``folder``, and rewrite the folder's ``index.html``.

    A second check of the same window replaces its page. The newest :data:`MAX_PAGES` pages are kept.

    :returns: path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{report.window.end:%Y%m%dT%H%M%S}-{report.window.start:%Y%m%dT%H%M%S}.html"
    _replace(page, page_html(agent, report, results, home="index.html", shows_values=shows_values))
    pages = sorted(folder.glob("*T*-*T*.html"), reverse=True)
    for old in pages[MAX_PAGES:]:
        old.unlink(missing_ok=True)
    entries = [(path.name, entry) for path in pages[:MAX_PAGES] if (entry := _read_entry(path))]
    _replace(folder / "index.html", _view().env.get_template("index.html").render(agent=agent, entries=entries))
    return page


@functools.cache
def _view() -> DefaultJinjaPageView:
    """Return Great Expectations' templates and filters together with our pages."""
    from great_expectations.render import RenderedContent
    from great_expectations.render.view import DefaultJinjaPageView
    from jinja2 import pass_context

    class View(DefaultJinjaPageView):
        """Escape values: the original class inserts table cells as HTML, so a script in the data would run."""

        @pass_context
        def render_content_block(self, context: Any, block: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(block, list):
                return "".join(self.render_content_block(context, item, *args, **kwargs) for item in block)
            if isinstance(block, tuple):
                block = ", ".join(map(str, block))
            if block is not None and not isinstance(block, dict | RenderedContent):
                return html.escape(str(block))
            return super().render_content_block(context, block, *args, **kwargs)

    return View(custom_views_directory=str(Path(__file__).parent / "pages"))


def _without_row_details(result: ExpectationValidationResult, shows_values: bool) -> ExpectationValidationResult:
    """Return a copy without the positions of bad rows, whose ids the quarantine has, and without missing values.

    :param shows_values: False: without any value of a row.
    """
    copied = copy.copy(result)
    omitted: tuple[str, ...] = ("unexpected_index",)
    is_about_missing = result.expectation_config and result.expectation_config.type == _NOT_NULL
    if is_about_missing or not shows_values:
        omitted = ("unexpected_index", "unexpected_list", "partial_unexpected")
    copied.result = {key: value for key, value in result.result.items() if not key.startswith(omitted)}
    return copied


def _sections(results: Sequence[ExpectationValidationResult]) -> dict[str, list[ExpectationValidationResult]]:
    """Group the results by column, in the contract's order; results on several columns or none come first."""
    sections: dict[str, list[ExpectationValidationResult]] = {WINDOW_SECTION: []}
    for result in results:
        assert result.expectation_config is not None  # every result of a suite has one
        sections.setdefault(result.expectation_config.kwargs.get("column", WINDOW_SECTION), []).append(result)
    return {name: section for name, section in sections.items() if section}


def _flags(results: Sequence[ExpectationValidationResult]) -> tuple[bool, bool]:
    """Return whether an expectation of the contract failed, and whether the column drifted."""
    failures_are_drift = {
        (result.expectation_config.meta or {}).get("rule") == "drift"
        for result in results
        if result.expectation_config is not None and not result.success
    }
    return False in failures_are_drift, True in failures_are_drift


def _window(report: DataReport) -> str:
    return f"{report.window.start:%Y-%m-%d %H:%M} – {report.window.end:%Y-%m-%d %H:%M} UTC"


def _entry(report: DataReport) -> dict[str, Any]:
    """Return what the index shows for a page. It is stored in the page's head, so the index needs only the pages."""
    drifted = sum(failure.expectation == "expect_column_drift_to_be_below" for failure in report.failures)
    return {
        "window": _window(report),
        "broken": report.broken,
        "rows": report.rows,
        "quarantined": report.quarantined,
        "drifted": drifted,
    }


def _read_entry(page: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError), page.open(encoding="utf-8") as file:  # another run may have removed it
        match = re.search(r'<meta name="stillhouse-check" content="([^"]*)">', file.read(4000))
        entry: dict[str, Any] | None = json.loads(html.unescape(match[1])) if match else None
        return entry
    return None


def _replace(path: Path, text: str) -> None:
    """Replace a page atomically, readable for everyone."""
    write_atomic(path, text)
    path.chmod(0o644)
