"""The pictures of docs/images: ``make screenshots``. What they show is made and started here, and stopped at the end.

A short demo is played into the folder ``.screens`` (``SCREENSHOTS_HOME``), with an MLflow server, a Prefect server and
a worker on free ports of loopback; one refresh runs through its deployment. If ``PREFECT_URL`` and ``MLFLOW_URL`` name
servers that run already, these are taken instead. Names of pictures as arguments limit what is taken.

Needs playwright (``make screenshots`` puts it into .venv-screens) and a Chromium (``CHROMIUM``, by default
/usr/bin/chromium; ``apt install chromium``).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[2]
AGENT = os.environ.get("AGENT", "flights")
WEEKS = os.environ.get("WEEKS", "3")
HOME = Path(os.environ.get("SCREENSHOTS_HOME", ROOT / ".screens")).absolute()
BIN = ROOT / ".venv" / "bin"
IMAGES = Path(os.environ.get("IMAGES", ROOT / "docs" / "images"))
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
WITHOUT_ASSISTANT = """localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
                       localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");"""
CLASSIC = "workflowType=machine_learning"  # else MLflow opens in its GenAI mode

PREFECT, MLFLOW = os.environ.get("PREFECT_URL", ""), os.environ.get("MLFLOW_URL", "")


def main() -> None:
    if shutil.which(CHROMIUM) is None:
        sys.exit(f"{CHROMIUM} does not exist: apt install chromium, or set CHROMIUM")
    with ExitStack() as stack:
        if not (PREFECT and MLFLOW):
            stack.enter_context(start_everything())
        take(sys.argv[1:])


def take(wanted: list[str]) -> None:
    """Take the pictures of these names, or all; one that fails does not keep the others from being taken."""
    shots = (
        prefect_run,
        prefect_artifact,
        prefect_timeline,
        prefect_form,
        mlflow_run,
        mlflow_figures,
        mlflow_frontier,
        mlflow_timeline,
        mlflow_model,
        mlflow_compare,
        device_page,
    )
    failed = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme="light").new_page()
        page.add_init_script(WITHOUT_ASSISTANT)
        for shoot in shots:
            name = shoot.__name__.replace("_", "-")
            if wanted and name not in wanted and shoot.__name__ not in wanted:
                continue
            try:
                shoot(page)
                save(page, name)
            except Exception as error:
                failed.append(name)
                print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        browser.close()
    if failed:
        sys.exit(f"not taken: {', '.join(failed)}")


# --------------------------------------------------------------------------- what is to be seen


@contextmanager
def start_everything() -> Iterator[None]:
    """Servers with a short demo and a refresh by hand; they end with the context."""
    global PREFECT, MLFLOW
    HOME.joinpath("mlflow").mkdir(parents=True, exist_ok=True)
    prefect, mlflow = free_port(), free_port()
    PREFECT, MLFLOW = f"http://127.0.0.1:{prefect}", f"http://127.0.0.1:{mlflow}"
    env = os.environ | {
        "STILLHOUSE_HOME": str(HOME),
        "PREFECT_HOME": str(HOME / "prefect"),
        "PREFECT_API_URL": f"{PREFECT}/api",
        "PREFECT_SERVER_UI_API_URL": f"{PREFECT}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_TRACKING_URI": MLFLOW,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    store = ["--backend-store-uri", f"sqlite:///{HOME}/mlflow/mlflow.db"]
    files = ["--artifacts-destination", str(HOME / "mlflow" / "artifacts")]
    at = ["--host", "127.0.0.1", "--port"]
    with ExitStack() as stack:
        stack.enter_context(started("prefect", "server", "start", *at, str(prefect), env=env))
        stack.enter_context(started("mlflow", "server", *at, str(mlflow), "--workers", "1", *store, *files, env=env))
        wait_for(f"{PREFECT}/api/health")
        wait_for(f"{MLFLOW}/health")
        run("python", "-m", "flows", "demo", "--agent", AGENT, "--weeks", WEEKS, env=env)
        run("prefect", "work-pool", "create", "stillhouse", "--type", "process", "--overwrite", env=env)
        run("prefect", "--no-prompt", "deploy", "--all", env=env)
        stack.enter_context(started("prefect", "worker", "start", "--pool", "stillhouse", env=env))
        weeks = json.loads((HOME / "demo" / AGENT / "weeks.json").read_text(encoding="utf-8"))
        parameters = ["-p", "cause=a new weather feed", "-p", f"as_of={weeks[-1]['ending']}"]
        run("prefect", "deployment", "run", f"refresh/{AGENT}", *parameters, "--watch", env=env)
        yield


@contextmanager
def started(*command: str, env: dict[str, str]) -> Iterator[None]:
    """The command in the background, its output in a log file; it ends with the context, and all that it started."""
    log = HOME / f"{command[0]}-{command[1]}.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children: they are a session of their own."""
    for sign in (15, 9):
        try:
            os.killpg(process.pid, sign)
            process.wait(20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def run(*command: str, env: dict[str, str]) -> None:
    print("$", *command, flush=True)
    done = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}; the servers' logs are in {HOME}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(url: str, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (URLError, OSError):
            time.sleep(1)
    raise SystemExit(f"{url} did not answer within {seconds:.0f} s; the servers' logs are in {HOME}")


# --------------------------------------------------------------------------- a device


def device_page(page: Page) -> None:
    """The champion in the page of examples/web, which decides about a windy morning in the browser."""
    env = os.environ | {"STILLHOUSE_HOME": str(HOME), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    (key,) = HOME.glob("keys/trusted/*.pub")
    server, port = free_port(), free_port()
    address = f"http://127.0.0.1:{server}"
    with (
        started("stillhouse", "serve", AGENT, "--port", str(server), env=env),
        started("python", "examples/device_page.py", str(key), address, str(port), env=env),
    ):
        wait_for(f"{address}/healthz")
        open_(page, f"http://127.0.0.1:{port}/?agent={AGENT}", "is as it was signed")
        for name, value in {"minute": "1020", "distance": "1400", "wind_gust": "40", "precip": "0.2"}.items():
            page.locator(f"[name={name}]").fill(value)
        for name, value in {"carrier": "EV", "origin": "EWR"}.items():
            page.locator(f"[name={name}]").select_option(value)
        page.get_by_role("button", name="Decide").click()
        page.get_by_text("decided in").wait_for()


# --------------------------------------------------------------------------- Prefect


def prefect_run(page: Page) -> None:
    """The page of a refresh: its tasks on a time line, and its log."""
    open_(page, f"{PREFECT}/runs/flow-run/{newest_refresh()['id']}", "settle")


def prefect_artifact(page: Page) -> None:
    """What that refresh left to read."""
    open_(page, artifact_page(f"refresh-{AGENT}"), "Models on the test window")


def prefect_timeline(page: Page) -> None:
    """The agent's life, as that refresh drew it."""
    open_(page, artifact_page(f"timeline-{AGENT}"), AGENT)
    page.locator("img[src^='data:image/png']").first.wait_for(timeout=60_000)


def artifact_page(key: str) -> str:
    """The address of an artifact of the newest refresh."""
    wanted = {"flow_run_id": {"any_": [newest_refresh()["id"]]}, "key": {"any_": [key]}}
    (artifact,) = post(f"{PREFECT}/api/artifacts/filter", artifacts=wanted)
    return f"{PREFECT}/artifacts/artifact/{artifact['id']}"


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
    open_(page, f"{MLFLOW}/#/experiments/{experiment()}/runs?{CLASSIC}", "Expand rows")
    page.locator(".ag-cell[col-id*='Run Name'] button").first.click()
    page.wait_for_timeout(2000)


def mlflow_figures(page: Page) -> None:
    """A figure of the champion's refresh."""
    open_figure(page, "size_latency_quality.png")


def mlflow_frontier(page: Page) -> None:
    """The compression frontier of the champion's refresh, which can be pointed at."""
    open_figure(page, "frontier.html")


def mlflow_timeline(page: Page) -> None:
    """The agent's life until the champion's refresh."""
    open_figure(page, "timeline.png")


def open_figure(page: Page, name: str) -> None:
    run = champion_tags()["refresh_run"]
    open_(page, f"{MLFLOW}/#/experiments/{experiment()}/runs/{run}/artifacts/figures/{name}?{CLASSIC}", name)


def mlflow_model(page: Page) -> None:
    """The registered model with its aliases."""
    open_(page, f"{MLFLOW}/#/models/{AGENT}?{CLASSIC}", "@ champion")
    page.get_by_text("@ champion").first.evaluate("row => row.scrollIntoView({block: 'center'})")
    page.wait_for_timeout(1000)


def mlflow_compare(page: Page) -> None:
    """The champion beside the champion before it."""
    champion, previous = version("champion"), version("previous")
    pair = {previous["version"]: previous["run_id"], champion["version"]: champion["run_id"]}
    open_(
        page,
        f"{MLFLOW}/#/compare-model-versions?name={quote(json.dumps(AGENT))}&runs={quote(json.dumps(pair))}&{CLASSIC}",
        "Comparing",
    )


# --------------------------------------------------------------------------- asking the servers


def newest_refresh() -> dict[str, Any]:
    runs = post(
        f"{PREFECT}/api/flow_runs/filter",
        flows={"name": {"any_": ["refresh"]}},
        sort="START_TIME_DESC",
        flow_runs={"state": {"type": {"any_": ["COMPLETED"]}}},
    )
    newest: dict[str, Any] = runs[0]
    return newest


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
    page.wait_for_timeout(3000)


def save(page: Page, name: str) -> None:
    """A palette of 256 colours keeps a page well below 300 kB."""
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main()
