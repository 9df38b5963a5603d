"""The story of a device: it pulls a champion, decides while the network is gone, is killed, and hands everything in.

``make demo-device`` plays it with real processes: a refresh of a short flights agent, ``stillhouse serve`` with a
token, and ``examples/device.py`` in an environment that has numpy, onnxruntime and cryptography, and nothing else of
stillhouse than the file ``verifying.py``. All of it stays in ``STILLHOUSE_HOME/demo/device``, with a summary.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from examples.flights import departures, week_start
from stillhouse import config
from stillhouse.errors import RuntimeStateError
from stillhouse.terminal import Console, report_errors

AGENT, WEEKS, FLIGHTS_A_DAY, KILLED_AFTER = "flights", 4, 250, 40
ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv-peers" / "device" / "bin" / "python"
"""With what `environments/device.txt` names; without it, this interpreter."""

console = Console()


def shorten(path: Path) -> None:
    """Write the flights agent with windows of a few weeks and one form of each student."""
    sections = yaml.safe_load((ROOT / "agents" / f"{AGENT}.yaml").read_text(encoding="utf-8"))
    sections["windows"] = {"train": "5w", "test": "4d", "current": "7d", "min_train_rows": 1_000}
    sections["compression"] = {"recipes": [{"method": "fp32"}, {"method": "int8_static"}], "search": None}
    sections["runtime"] = {"poll": "1s", "flush": "1s"}
    path.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")


def make_champion() -> None:
    """Read the first weeks of flights, and refresh."""
    import stillhouse
    from stillhouse.ingesting import ingest

    end = week_start(WEEKS).to_pydatetime()
    ingest(AGENT, week_start(0).to_pydatetime(), end)
    verdict = stillhouse.refresh(AGENT, end, trigger="bootstrap", cause="the first champion")
    console.print(f"{verdict.result}: {verdict.summary}", soft_wrap=True)


def promote_another() -> str:
    """Promote the newest version by hand: the refresh made one that has also learned from its test window."""
    from stillhouse.champion import open_registry
    from stillhouse.promoting import promote_version

    version = max(int(entry.version) for entry in open_registry(AGENT).versions())
    console.print(promote_version(AGENT, version, "the device shall have something new").summary, soft_wrap=True)
    return f"{AGENT}@{version}"


@contextlib.contextmanager
def network(champion: str, port: int = 0) -> Iterator[str]:
    """``stillhouse serve``, as long as there is a network; yields its address once it has that champion."""
    code = "from stillhouse.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", AGENT, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r" on (http://\S+)", process.stdout.readline())
            if found is None:
                raise RuntimeStateError("stillhouse serve does not start: its message is above")
            wait_for(champion, found[1])
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)


def wait_for(champion: str, server: str) -> None:
    """Until the server decides with a champion."""
    token = {"Authorization": f"Bearer {os.environ['STILLHOUSE_TOKEN']}"}
    for _ in range(1200):
        with urllib.request.urlopen(urllib.request.Request(f"{server}/v1/agents/{AGENT}", headers=token)) as answer:
            if json.load(answer)["champion"] == champion:
                return
        time.sleep(0.1)
    raise RuntimeStateError(f"the server has not taken {champion} within two minutes: its messages are above")


def install(folder: Path) -> list[str]:
    """Put three files on the device; returns the command that it runs."""
    folder.mkdir()
    for file in (ROOT / "examples" / "device.py", ROOT / "src" / "stillhouse" / "verifying.py"):
        shutil.copy(file, folder)
    (pem,) = (config.home() / "keys" / "trusted").glob("*.pub")
    shutil.copy(pem, folder / "flights.pub")
    python = PYTHON if PYTHON.exists() else Path(sys.executable)
    return [str(python), str(folder / "device.py"), AGENT, str(folder / "flights.pub"), str(folder / "state")]


def decide(command: Sequence[str], rows: Sequence[str], *, kill_after: int | None = None) -> list[dict[str, Any]]:
    """Let the device decide about rows, and perhaps kill it with SIGKILL; returns what it has printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "STILLHOUSE_HOME"))}
    pipe, made = subprocess.PIPE, list[dict[str, Any]]()
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, env=environment) as device:
        assert device.stdin is not None and device.stdout is not None
        for row in rows:
            device.stdin.write(row + "\n")
            made.append(json.loads(device.stdout.readline()))
            if len(made) == kill_after:
                device.kill()
                return made
    return made


def flights(day: int) -> list[str]:
    """The first departures of a day that the agent does not know, as JSON."""
    start = week_start(WEEKS) + timedelta(days=day)
    rows = departures(start, start + timedelta(days=1)).head(FLIGHTS_A_DAY)
    return rows.to_json(orient="records", lines=True, date_format="iso").splitlines()


def play(folder: Path) -> dict[str, Any]:
    """The story; returns its summary."""
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.knowledge.flush import flush

    make_champion()
    command, rows = install(folder / "device"), [flights(day) for day in range(3)]
    with network(f"{AGENT}@1") as server:
        console.print("\nthe device pulls the champion, decides about a day of flights, and hands them in")
        made = decide([*command, server], rows[0])
    console.print(f"\nthe network is gone; the device decides on, and is killed after {KILLED_AFTER} flights (SIGKILL)")
    made += decide([*command, server], rows[1], kill_after=KILLED_AFTER)
    made += decide(command, rows[1][KILLED_AFTER:])
    second = promote_another()
    with network(second) as server:
        console.print("\nthere is a network again: the device hands in, and takes over the champion of now")
        made += decide([*command, server], rows[2])
    base = KnowledgeBase(config.load(AGENT))
    flush(base)
    decisions = base.read("decisions")
    ids = {row["observation"]["observation_id"] for row in made}
    ours = decisions[decisions["observation_id"].isin(ids)]
    return {
        "decided_on_the_device": len(made),
        "in_the_knowledge_base": len(ours),
        "lost": len(ids - set(ours["observation_id"])),
        "doubled": len(ours) - ours["decision_id"].nunique(),
        "versions": ours["version"].value_counts().sort_index().to_dict(),
    }


def main() -> None:
    """Play the story and print its summary."""
    began, folder = time.monotonic(), config.home() / "demo" / "device"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "agents").mkdir(parents=True)
    shorten(folder / "agents" / f"{AGENT}.yaml")
    os.environ |= {"STILLHOUSE_HOME": str(folder / "store"), "STILLHOUSE_AGENTS": str(folder / "agents")}
    os.environ |= {"STILLHOUSE_TOKENS": (token := secrets.token_hex(16)), "STILLHOUSE_TOKEN": token}
    summary = play(folder) | {"seconds": round(time.monotonic() - began)}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    console.print("\n" + "\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in summary.items()))
    console.print(f"summary: {folder / 'summary.json'}", soft_wrap=True)


if __name__ == "__main__":
    with report_errors({}, "run the same command again: it begins anew"):
        main()
