"""Data Docs: the results of a check as pages that open anywhere, from a folder as from MLflow.

Great Expectations renders every expectation and what it observed, with its own renderers and templates. The page
around them is ours: its own loads style sheets, scripts and pictures from seven hosts on the internet, and is
unreadable without them. These pages load nothing.
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

PAGES_KEPT = 60
"""The newest so many pages of a folder stay."""

OF_THE_WINDOW = "The window"


def page_html(
    agent: str, report: DataReport, results: Sequence[ExpectationValidationResult], home: str | None = None
) -> str:
    """One HTML document of about 100 kB that needs nothing beside it.

    :param results: what Great Expectations found, of all parts of the suite.
    :param home: link to a page above this one.
    """
    from great_expectations.render.renderer.column_section_renderer import ValidationResultsColumnSectionRenderer

    results = [_for_readers(result) for result in results]
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
            held=sum(bool(result.success) for result in results),
            asked=len(results),
            contents=[(name, *_colours(each)) for name, each in sections.items()],
            sections=[renderer.render(each).to_json_dict() for each in sections.values()],
        )
    )


def write(folder: Path, agent: str, report: DataReport, results: Sequence[ExpectationValidationResult]) -> Path:
    """Write the page of one check into ``folder``, and the folder's ``index.html`` anew.

    A window that is checked again replaces its page. Only the newest :data:`PAGES_KEPT` windows are kept.

    :returns: path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{report.window.end:%Y%m%dT%H%M%S}-{report.window.start:%Y%m%dT%H%M%S}.html"
    _replace(page, page_html(agent, report, results, home="index.html"))
    pages = sorted(folder.glob("*T*-*T*.html"), reverse=True)
    for old in pages[PAGES_KEPT:]:
        old.unlink(missing_ok=True)
    entries = [(each.name, entry) for each in pages[:PAGES_KEPT] if (entry := _entry_of(each))]
    _replace(folder / "index.html", _view().env.get_template("index.html").render(agent=agent, entries=entries))
    return page


@functools.cache
def _view() -> DefaultJinjaPageView:
    """Great Expectations' own templates and filters, with our pages beside them."""
    from great_expectations.render import RenderedContent
    from great_expectations.render.view import DefaultJinjaPageView
    from jinja2 import pass_context

    class View(DefaultJinjaPageView):
        """Values are shown as text: the original puts a table's cells into the page as HTML, and scripts would run."""

        @pass_context
        def render_content_block(self, context: Any, block: Any, *arguments: Any, **more: Any) -> Any:
            if isinstance(block, list):
                return "".join(self.render_content_block(context, each, *arguments, **more) for each in block)
            if isinstance(block, tuple):
                block = ", ".join(map(str, block))
            if block is not None and not isinstance(block, dict | RenderedContent):
                return html.escape(str(block))
            return super().render_content_block(context, block, *arguments, **more)

    return View(custom_views_directory=str(Path(__file__).parent / "pages"))


def _for_readers(result: ExpectationValidationResult) -> ExpectationValidationResult:
    """The same without bad rows' positions (the quarantine has their ids) and missing values one by one."""
    slim = copy.copy(result)
    idle: tuple[str, ...] = ("unexpected_index",)
    if result.expectation_config and result.expectation_config.type == "expect_column_values_to_not_be_null":
        idle = ("unexpected_index", "partial_unexpected")
    slim.result = {key: value for key, value in result.result.items() if not key.startswith(idle)}
    return slim


def _sections(results: Sequence[ExpectationValidationResult]) -> dict[str, list[ExpectationValidationResult]]:
    """The results by column, in the contract's order; what is about several columns or none comes first."""
    sections: dict[str, list[ExpectationValidationResult]] = {OF_THE_WINDOW: []}
    for result in results:
        assert result.expectation_config is not None  # every result of a suite has one
        sections.setdefault(result.expectation_config.kwargs.get("column", OF_THE_WINDOW), []).append(result)
    return {name: each for name, each in sections.items() if each}


def _colours(results: Sequence[ExpectationValidationResult]) -> tuple[bool, bool]:
    """Whether something of the contract failed, and whether the column drifted."""
    failed = {
        (result.expectation_config.meta or {}).get("rule") == "drift"
        for result in results
        if result.expectation_config is not None and not result.success
    }
    return False in failed, True in failed


def _window(report: DataReport) -> str:
    return f"{report.window.start:%Y-%m-%d %H:%M} – {report.window.end:%Y-%m-%d %H:%M} UTC"


def _entry(report: DataReport) -> dict[str, Any]:
    """What the index shows of a page; it stands in the page's head, so that pages are all that is kept."""
    drifted = sum(failure.expectation == "expect_column_drift_to_be_below" for failure in report.failures)
    return {
        "window": _window(report),
        "broken": report.broken,
        "rows": report.rows,
        "quarantined": report.quarantined,
        "drifted": drifted,
    }


def _entry_of(page: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError), page.open(encoding="utf-8") as file:  # another run may have removed it
        found = re.search(r'<meta name="stillhouse-check" content="([^"]*)">', file.read(4000))
        entry: dict[str, Any] | None = json.loads(html.unescape(found[1])) if found else None
        return entry
    return None


def _replace(path: Path, text: str) -> None:
    """A reader meets the old page or the new one, never half of one."""
    write_atomic(path, text)
    path.chmod(0o644)
