"""Open the page of a champion in headless Chromium; run by the interpreter of .venv-screens.

Reads one request a line from the standard input, ``{"url", "rows"?, "image"?, "fill"?}``, and prints what was seen,
each time in a fresh profile: ``first_decision_ms`` (from the navigation, with an empty cache), ``rss_kib`` (resident
memory of the process that renders the page), ``state`` (what the page says), ``decisions`` of ``rows``, which are
decided with the network cut off, ``shown`` (what the page shows for the values ``fill`` of its form), ``requests`` (the
addresses that the page asked for) and ``error``. ``image`` is a file for a screenshot.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
PATIENCE_MS = 60_000
DECIDE = "async (rows) => { const all = []; for (const row of rows) all.push(await champion.decide(row)); return all; }"
ENDED = "() => document.body.dataset.firstDecision || document.body.dataset.error || document.body.dataset.empty"


def main() -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        for line in sys.stdin:
            print(json.dumps(see(browser, **json.loads(line))), flush=True)
        browser.close()


def see(
    browser: Browser, url: str, rows: Any = (), image: str | None = None, fill: dict[str, str] | None = None
) -> dict[str, Any]:
    context = browser.new_context(viewport={"width": 1000, "height": 860}, color_scheme="light")
    context.set_default_timeout(PATIENCE_MS)
    before = renderers(browser)
    page, seen = context.new_page(), list[str]()
    page.on("request", lambda request: seen.append(request.url))
    page.goto(url)
    page.wait_for_function(ENDED)
    result: dict[str, Any] = dict(page.evaluate("() => ({ ...document.body.dataset })"))
    found: dict[str, Any] = {
        "first_decision_ms": float(result.get("firstDecision", "nan")),
        "rss_kib": sum(resident_kib(pid) for pid in renderers(browser) - before),
        "error": result.get("error"),
        "requests": list(seen),
    }
    if rows:
        context.set_offline(True)
        found["decisions"] = page.evaluate(DECIDE, list(rows))
        for name, value in (fill or {}).items():
            enter(page, name, value)
        page.get_by_role("button", name="Decide").click()
        found["shown"] = page.locator("#result").inner_text()
        context.set_offline(False)
    found["state"] = page.locator("#state").inner_text() if page.locator("#state").count() else ""
    if image:
        page.screenshot(path=Path(image))
    if rows:  # now with the ETag of the champion that it has
        page.reload()
        page.wait_for_function(ENDED)
    context.close()
    return found


def enter(page: Page, name: str, value: str) -> None:
    """Type or choose a value of the form."""
    field = page.locator(f"[name='{name}']")
    if field.evaluate("field => field.tagName") == "SELECT":
        field.select_option(value)
    else:
        field.fill(value)


def renderers(browser: Browser) -> set[int]:
    """The processes that render pages."""
    found = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    return {process["id"] for process in found if process["type"] == "renderer"}


def resident_kib(pid: int) -> int:
    """``VmRSS`` of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


if __name__ == "__main__":
    main()
