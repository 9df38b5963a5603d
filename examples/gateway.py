"""The whole story of the front door: a language model is asked as always, and a small model takes over what it can.

``make demo-gateway`` plays it in real processes on loopback: a model's server, ``stillhouse serve --upstream`` before
it, an unmodified `openai` client, ``stillhouse tasks``, ``stillhouse adopt`` and refreshes.

**The "LLM" is scripted**: MiniLM with a linear head behind the OpenAI protocol. See
:mod:`examples.scripted_model`; what it says is reckoned in one batch before the story begins. **Time is
compressed**: a week is some hundred requests in some seconds, so windows are in seconds in the adopted agent file, too.
The actions of all domains are in the schema of the first request; the last domain's sentences begin later.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml

from examples.gateway_weeks import HEADER, Week, draw
from examples.scripted_model import LATE, MODEL, Story, make_story, model_server
from stillhouse import config
from stillhouse.errors import RuntimeStateError
from stillhouse.terminal import Console, report_errors

AGENT = "intents"
REQUESTS, CAPTURED, ARRIVES, REFRESHED, LAST = 390, 4, 7, 8, 10
"""Requests a week; weeks before the first champion; when the late domain begins; the week of the refresh; the last."""
_FREE_SECONDS = 60.0  # within which records are written and a new champion is loaded

console = Console()


# --------------------------------------------------------------------------- the commands


_STILLHOUSE = [sys.executable, "-c", "from stillhouse.cli import main; main()"]


def run(*arguments: str, quiet: bool = False) -> str:
    """Run a command of stillhouse, and show it with what it prints."""
    done = subprocess.run([*_STILLHOUSE, *arguments], capture_output=True, text=True, check=False)
    if not quiet:
        console.print(f"\n$ stillhouse {' '.join(arguments)}", style="bold")
        console.print(done.stdout.rstrip(), soft_wrap=True)
    if done.returncode:
        raise RuntimeStateError(f"stillhouse {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def door(upstream: str, folder: Path, *agents: str) -> Iterator[str]:
    """The front door as a process of its own on a free port; yields its address. It is ended by SIGTERM."""
    command = [*_STILLHOUSE, "serve", *agents, "--port", "0", "--upstream", upstream]
    console.print(f"\n$ stillhouse serve {' '.join((*agents, '--upstream', upstream))}", style="bold")
    with (
        (folder / "serve.log").open("a") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            found = re.search(r" on (http://\S+)", process.stdout.readline())
            if found is None:
                raise RuntimeStateError(f"the front door does not start: see {folder / 'serve.log'}")
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_FREE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(what: str, condition: Any) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + _FREE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeStateError(f"{what} takes more than {_FREE_SECONDS:g} s")
        time.sleep(0.1)


def send(address: str, story: Story, week: Week, seconds: float) -> datetime:
    """Send a week of sentences by an unmodified client; count the local answers, and those that the model gives too.

    :returns: the end of the week.
    """
    import openai

    schema = {"type": "object", "properties": {"intent": {"type": "string", "enum": list(story.actions)}}}
    schema |= {"required": ["intent"], "additionalProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "intent", "strict": True, "schema": schema}}
    began, texts = time.monotonic(), story.weeks[week.week - 1]
    with openai.OpenAI(base_url=f"{address}/v1", api_key="sk-demo", max_retries=0) as client:
        for number, text in enumerate(texts):
            messages: Any = [
                {"role": "system", "content": "Name the intent of the sentence."},
                {"role": "user", "content": text},
            ]
            answer = client.chat.completions.with_raw_response.create(
                model=MODEL, messages=messages, response_format=form
            )
            is_local = answer.headers.get("x-stillhouse-decided-by") == "student"
            intent = json.loads(answer.parse().choices[0].message.content or "{}")["intent"]
            week.late += story.domains[text] == LATE
            week.local += is_local
            week.agreed += is_local and intent == story.answers[text]
            if is_local:
                week.champion = answer.headers["x-stillhouse-version"]
            time.sleep(max(0.0, began + seconds * (number + 1) / len(texts) - time.monotonic()))
    end = datetime.now(UTC)
    wait_for("writing the records", lambda: httpx.get(f"{address}/v1/door").json()["unwritten"] == 0)
    return end


def edit(path: Path, seconds: float) -> None:
    """Edit the drafted agent file for a week of some seconds, and for small numbers."""
    sections = yaml.safe_load(path.read_text(encoding="utf-8"))
    sections["windows"] = {
        "train": "1h",
        "test": f"{seconds:.1f}s",
        "current": f"{seconds:.1f}s",
        "min_train_rows": 500,
    }
    sections["observations"]["min_rows"] = 30
    sections["promotion"] = {"cluster": "0s"}  # sentences are independent
    sections["compression"] = {"recipes": [{"method": "fp32"}, {"method": "int8_dynamic"}], "search": None}
    sections["runtime"] |= {"poll": "1s", "flush": "2s"}
    sections["runtime"]["cascade"] |= {"agreement": 0.95, "audit": 0.1}  # provable by some hundred requests
    path.write_text(yaml.safe_dump(sections, sort_keys=False, width=110), encoding="utf-8")


def refresh(trigger: Any, cause: str, end: datetime) -> Any:
    """Run the flow of a refresh on all that was recorded until ``end``."""
    from flows.refresh import refresh as run_refresh

    console.print(f"\n$ python -m flows refresh --agent {AGENT} --trigger {trigger}", style="bold")
    verdict = run_refresh(agent=AGENT, as_of=end, trigger=trigger, cause=cause)
    console.print(f"{verdict.result.replace('_', ' ')}: {verdict.summary}")
    return verdict


def play(folder: Path, story: Story) -> Iterator[Week]:
    """The story, week by week."""
    seconds, path = 0.0, folder / "agents" / f"{AGENT}.yaml"
    with model_server(story.answers) as upstream:
        with door(upstream, folder) as address:
            for number in range(1, CAPTURED + 1):
                began = time.monotonic()
                week = Week(number, REQUESTS)
                end = send(address, story, week, seconds)
                seconds = max(seconds, round(time.monotonic() - began + 0.5, 1))
                if number == CAPTURED:
                    run("tasks")
                    key = json.loads(run("tasks", "--json", quiet=True))["tasks"][0]["task"]["key"]
                    run("adopt", key, AGENT)
                    edit(path, seconds)
                    week.refresh = refresh("bootstrap", "the first champion", end).result
                yield week
        with door(upstream, folder, AGENT) as address:
            wait_for("loading the champion", lambda: _champion(address) is not None)
            for number in range(CAPTURED + 1, LAST + 1):
                week = Week(number, REQUESTS, champion=str(_champion(address)))
                end = send(address, story, week, seconds)
                if number == REFRESHED:
                    verdict = refresh("manual", f"{LATE} has arrived, and coverage has fallen", end)
                    week.refresh = verdict.result
                    if verdict.result == "promoted":
                        wait_for("loading the champion", lambda old=week.champion: _champion(address) != old)
                yield week
            status = httpx.get(f"{address}/v1/agents/{AGENT}").json()["promise"]
            console.print(f"\nthe promise: {status['why']}")
        run("tasks")


def _champion(address: str) -> str | None:
    return httpx.get(f"{address}/v1/agents/{AGENT}").json()["champion"]


def main() -> None:
    """Play the story, print a line a week, and write the figure and the summary."""
    began = time.monotonic()
    folder = config.home() / "demo" / "gateway"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "agents").mkdir(parents=True)
    console.print("the scripted model answers all sentences, in one batch (the first time: about a minute) …")
    story = make_story(LAST, REQUESTS, ARRIVES)
    os.environ |= {"STILLHOUSE_HOME": str(folder / "store"), "STILLHOUSE_AGENTS": str(folder / "agents")}
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    config.use_embedded_defaults()
    from tasks.prefect_server import ensure_server

    ensure_server()()
    weeks = list[Week]()
    for week in play(folder, story):
        weeks.append(week)
        if week.refresh or len(weeks) in (1, CAPTURED + 1):
            console.print(f"\n{HEADER}", style="bold", soft_wrap=True)
        console.print(week.line, soft_wrap=True)
    cascade = config.load(AGENT).runtime.cascade
    assert cascade is not None and cascade.agreement is not None
    draw(weeks, cascade.agreement, ARRIVES, folder / "weeks.png")
    local, agreed = sum(week.local for week in weeks), sum(week.agreed for week in weeks)
    summary = {
        "compressed": "a week is some hundred requests in some seconds",
        "promised": cascade.agreement,
        "confidence": cascade.confidence,
        "requests": sum(week.requests for week in weeks),
        "answered_locally": local,
        "agreement": agreed / max(local, 1),
        "seconds": round(time.monotonic() - began),
        "weeks": [asdict(week) for week in weeks],
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    console.print(
        f"\n{local:,} of {summary['requests']:,} requests answered locally, {agreed / max(local, 1):.3f} of them as "
        f"the model; {summary['seconds']} s\nfigure: {folder / 'weeks.png'}\nsummary: {folder / 'summary.json'}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    with report_errors({}, "run the same command again: it begins anew"):
        main()
