"""What a person does in a browser; run by the interpreter of .venv-screens, see ``test_browser.py``.

``python browser.py <function> <arguments as JSON>`` prints what was read as JSON. Screenshots are saved into the folder
IMAGES. Each function starts on the first page of an interface, and goes on by clicks alone.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "tools"))

import screenshots as tools

PATIENCE = 300  # seconds; a refresh on a busy machine
EXAMPLE = tools.AGENT


# --------------------------------------------------------------------------- Prefect


def fill_form(page: Page, cause: str) -> dict[str, str]:
    """Deployments → refresh → Run → Custom run; wait until a challenger waits."""
    open_deployment(page, "refresh")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    field(page, "cause").fill(cause)
    snap(page, "form-refresh")
    submit(page)
    return read_run(page, f"^refresh {EXAMPLE} .*: awaiting approval$", "Awaiting approval")


def approve(page: Page, by: str, reason: str) -> dict[str, str]:
    """The page of the run that waits → refresh-<agent> → Approve, a form that is filled in but for who and why."""
    open_artifact(page, f"refresh-{EXAMPLE}", f"^refresh {EXAMPLE} .*: awaiting approval$")
    link = page.get_by_role("link", name=re.compile("^Approve "))
    link.wait_for()
    snap(page, "artifact-that-waits")
    name, address = link.inner_text(), link.get_attribute("href")
    tools.open_(page, str(address), "by (Optional)")  # the link opens a tab of its own
    field(page, "by (").fill(by)
    field(page, "reason (").fill(reason)
    snap(page, "form-approval")
    submit(page)
    return {"link": name} | read_run(page, f"^approve {EXAMPLE} .*: promoted$", "Promoted")


def read_champion(page: Page) -> dict[str, str]:
    """The page of the newest run that promoted → champion-<agent>."""
    open_artifact(page, f"champion-{EXAMPLE}", f"{EXAMPLE} .*: promoted$")
    page.get_by_text("How to go back?").first.wait_for()
    snap(page, "artifact-champion")
    return {"text": read(page)}


def see_timeline(page: Page) -> dict[str, Any]:
    """The page of a refresh that promoted → timeline-<agent>."""
    open_artifact(page, f"timeline-{EXAMPLE}", f"^refresh {EXAMPLE} .*: promoted$")
    image = page.locator("img[src^='data:image/png']").first
    image.wait_for()
    snap(page, "artifact-timeline")
    return {"width": image.evaluate("image => image.naturalWidth"), "shown": image.is_visible()}


def open_deployment(page: Page, flow: str) -> None:
    tools.open_(page, tools.PREFECT, "Dashboard")
    page.get_by_role("link", name="Deployments").first.click()
    row = page.get_by_role("row").filter(has_text=re.compile(rf"{EXAMPLE}\s*{flow}"))
    row.get_by_role("link", name=EXAMPLE).first.click()


def open_artifact(page: Page, key: str, run: str) -> None:
    """The newest run of this name → Artifacts → the newest one of the key."""
    open_run(page, run)
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_role("link", name=key).first.click()
    page.locator("a[href*='/artifacts/artifact/']").first.click()
    page.wait_for_timeout(2000)


def open_run(page: Page, name: str) -> None:
    """Runs → the newest run whose name matches; waits until there is one."""
    tools.open_(page, tools.PREFECT, "Dashboard")
    page.get_by_role("link", name="Runs").first.click()
    run, end = page.get_by_role("link", name=re.compile(name)).first, time.monotonic() + PATIENCE
    while not run.is_visible() and time.monotonic() < end:
        page.reload()
        page.wait_for_timeout(5_000)
    run.click()


def field(page: Page, label: str) -> Any:
    """The text field below a label; Prefect's pages do not tie them together."""
    return page.locator(f"xpath=//*[starts-with(normalize-space(text()), '{label}')]/following::textarea[1]")


def submit(page: Page) -> None:
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("scheduled to start").first.wait_for()


def read_run(page: Page, name: str, state: str) -> dict[str, str]:
    """Wait for the run of this name; the text of its page, which shows the name of its state."""
    open_run(page, name)
    page.get_by_text(state, exact=True).first.wait_for()
    page.wait_for_timeout(3000)
    snap(page, f"run-{state.lower().replace(' ', '-')}")
    return {"text": read(page)}


# --------------------------------------------------------------------------- MLflow


def compare(page: Page) -> dict[str, Any]:
    """The agent's versions → tick champion and previous → Compare; the values of each row, older version first."""
    open_model(page)
    for alias in ("champion", "previous"):
        row = page.get_by_role("row").filter(has_text=f"@ {alias}")
        row.get_by_role("checkbox").first.check(force=True)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("Comparing 2 Versions").wait_for()
    snap(page, "compare")
    rows = {}
    for row in page.get_by_role("row").all():
        name, *values = [cell.strip() for cell in row.inner_text().replace("\n", "\t").split("\t") if cell.strip()]
        rows[name] = values
    quality = page.get_by_text("quality", exact=True).first
    quality.evaluate("row => row.scrollIntoView({block: 'center'})")
    snap(page, "compare-quality")
    return rows


def explain(page: Page) -> dict[str, str]:
    """The agent's versions → the champion's → why → teacher, data, drift; the text of each page."""
    open_model(page)
    seen = {"model": read(page)}
    page.get_by_role("row").filter(has_text="@ champion").get_by_role("link", name="Version").first.click()
    page.get_by_text("Source Run").first.wait_for()
    seen["version"] = read(page)
    snap(page, "version")
    why = follow(page, "reasons, figures, teacher, data, drift", "Where to look")
    seen["why"] = read(why)
    snap(why, "why")
    for name, link, text in (
        ("teacher", "teacher", "Model ID"),
        ("data", "data sets of the refresh", "train ("),
        ("drift", "by column", "figures/drift.png"),
    ):
        there = follow(why, link, text)
        seen[name] = read(there)
        snap(there, name)
        if there is why:
            why.go_back()
            why.get_by_text("Where to look").first.wait_for()
    return seen


def follow(page: Page, link: str, text: str) -> Page:
    """Click a link; the page that it opens, here or in another tab, once it shows the text."""
    tabs = len(page.context.pages)
    page.get_by_role("link", name=link, exact=True).first.click()
    page.wait_for_timeout(2000)
    there = page.context.pages[-1] if len(page.context.pages) > tabs else page
    there.get_by_text(text).first.wait_for()
    there.wait_for_timeout(2000)
    return there


def open_model(page: Page) -> None:
    """The page of the agent's versions, which ``make ui`` links to."""
    tools.open_(page, f"{tools.MLFLOW}/#/models/{EXAMPLE}?{tools.CLASSIC}", "@ champion")
    snap(page, "model")


def read(page: Page) -> str:
    return page.locator("body").inner_text()


# --------------------------------------------------------------------------- the browser


def snap(page: Page, name: str) -> None:
    page.screenshot(path=tools.IMAGES / f"{name}.png")


def main() -> None:
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    actions = (fill_form, approve, read_champion, see_timeline, compare, explain)
    act = {action.__name__: action for action in actions}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=tools.CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        context = browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme="light")
        context.set_default_timeout(60_000)
        context.add_init_script(tools.WITHOUT_ASSISTANT)
        page = context.new_page()
        try:
            print(json.dumps(act[name](page, **arguments)))
        except Exception:
            for index, tab in enumerate(context.pages):
                snap(tab, f"failed-{name}-{index}")
            raise
        browser.close()


if __name__ == "__main__":
    main()
