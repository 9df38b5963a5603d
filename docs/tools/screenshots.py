"""Screenshots for the docs from a running Prefect server and a running MLflow: ``make screenshots``.

Needs playwright (``make screenshots`` puts it into .venv-screens) and a Chromium (``CHROMIUM``, by default
/usr/bin/chromium). Takes the newest refresh that drift started, and the champion beside the version before it.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Page, sync_playwright

PREFECT = os.environ.get("PREFECT_URL", "http://127.0.0.1:4200")
MLFLOW = os.environ.get("MLFLOW_URL", "http://127.0.0.1:5000")
AGENT = os.environ.get("AGENT", "flights")
IMAGES = Path(__file__).parents[1] / "images"
WITHOUT_ASSISTANT = """localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
                       localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");"""


def main() -> None:
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme="light").new_page()
        page.add_init_script(WITHOUT_ASSISTANT)
        wanted = sys.argv[1:]
        for shoot in (
            prefect_run,
            prefect_artifact,
            prefect_form,
            mlflow_run,
            mlflow_figures,
            mlflow_model,
            mlflow_compare,
        ):
            if not wanted or shoot.__name__ in wanted:
                shoot(page)
                save(page, shoot.__name__.replace("_", "-"))
        browser.close()


# --------------------------------------------------------------------------- Prefect


def prefect_run(page: Page) -> None:
    """The page of a refresh: its tasks on a time line, and its log."""
    open_(page, f"{PREFECT}/runs/flow-run/{drift_refresh()['id']}", "settle")


def prefect_artifact(page: Page) -> None:
    """What that refresh left to read."""
    run = drift_refresh()["id"]
    wanted = {"flow_run_id": {"any_": [run]}, "key": {"any_": [f"refresh-{AGENT}"]}}
    (artifact,) = post(f"{PREFECT}/api/artifacts/filter", artifacts=wanted)
    open_(page, f"{PREFECT}/artifacts/artifact/{artifact['id']}", "Scorecards")


def prefect_form(page: Page) -> None:
    """The typed form of a refresh by hand."""
    deployment = get(f"{PREFECT}/api/deployments/name/refresh/{AGENT}")
    open_(
        page,
        f"{PREFECT}/deployments/deployment/{deployment['id']}/run",
        "time (UTC) at which the training and test windows end",
    )


# --------------------------------------------------------------------------- MLflow


def mlflow_run(page: Page) -> None:
    """The runs of the agent's experiment: a parent for each refresh, a nested run for each model of the newest."""
    open_(page, f"{MLFLOW}/#/experiments/{experiment()}/runs", "Expand rows")
    page.locator(".ag-cell[col-id*='Run Name'] button").first.click()
    page.wait_for_timeout(2000)


def mlflow_figures(page: Page) -> None:
    """A figure of the champion's refresh."""
    run = champion_tags()["refresh_run"]
    open_(
        page,
        f"{MLFLOW}/#/experiments/{experiment()}/runs/{run}/artifacts/figures/size_latency_quality.png",
        "size_latency_quality.png",
    )


def mlflow_model(page: Page) -> None:
    """The registered model with its aliases."""
    open_(page, f"{MLFLOW}/#/models/{AGENT}", "@ champion")
    page.get_by_text("@ champion").first.evaluate("row => row.scrollIntoView({block: 'center'})")
    page.wait_for_timeout(1000)


def mlflow_compare(page: Page) -> None:
    """The champion beside the champion before it."""
    champion, previous = version("champion"), version("previous")
    pair = {previous["version"]: previous["run_id"], champion["version"]: champion["run_id"]}
    open_(
        page,
        f"{MLFLOW}/#/compare-model-versions?name={quote(json.dumps(AGENT))}&runs={quote(json.dumps(pair))}",
        "Comparing",
    )


# --------------------------------------------------------------------------- asking the servers


def drift_refresh() -> dict[str, Any]:
    runs = post(
        f"{PREFECT}/api/flow_runs/filter",
        flows={"name": {"any_": ["refresh"]}},
        sort="START_TIME_DESC",
        flow_runs={"state": {"type": {"any_": ["COMPLETED"]}}},
    )
    return next(run for run in runs if run["parameters"].get("trigger") == "drift")


def experiment() -> str:
    found = get(f"{MLFLOW}/api/2.0/mlflow/experiments/get-by-name?experiment_name={AGENT}")
    return str(found["experiment"]["experiment_id"])


def version(alias: str) -> dict[str, Any]:
    found: dict[str, Any] = get(f"{MLFLOW}/api/2.0/mlflow/registered-models/alias?name={AGENT}&alias={alias}")
    return found["model_version"]


def champion_tags() -> dict[str, str]:
    """The tags of the champion's logged model, which hold what programs need."""
    found = get(f"{MLFLOW}/api/2.0/mlflow/logged-models/{version('champion')['source'].removeprefix('models:/')}")
    return {tag["key"]: tag["value"] for tag in found["model"]["info"]["tags"]}


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def post(url: str, **body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


# --------------------------------------------------------------------------- the browser


def open_(page: Page, url: str, text: str) -> None:
    """Go there and wait for ``text``: both pages keep talking to their servers, so the network is never idle."""
    page.goto("about:blank")  # else a change of the fragment alone loads nothing
    page.goto(url, wait_until="domcontentloaded")
    page.get_by_text(text).first.wait_for(timeout=60_000)
    if url.startswith(MLFLOW):  # which opens in its GenAI mode
        page.get_by_text("Model training").first.click()
    page.wait_for_timeout(3000)


def save(page: Page, name: str) -> None:
    """A palette of 128 colours keeps a page well below 300 kB."""
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
