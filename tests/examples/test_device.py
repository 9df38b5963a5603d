"""A device decides without a network and hands in each decision once, whatever is killed; the page decides the same."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import uvicorn

import stillhouse.verifying
from stillhouse import config
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.flush import flush
from stillhouse.runtime.agent import Agent
from stillhouse.serving.archive import pack
from stillhouse.serving.http import AccessGuard
from stillhouse.serving.server import Server
from stillhouse.variant import Encoder, Variant
from tests.serving.test_server import put_champion, write_agent

ROOT = Path(__file__).parents[2]
DEVICE = ROOT / "examples" / "device.py"
ROWS = [{"wind": float(number), "hour": number % 24, "origin": ["EWR", "JFK", None][number % 3]} for number in range(9)]

FORBIDDEN = ("pandas", "stillhouse", "mlflow", "torch", "pyarrow", "pydantic", "deltalake", "prefect", "yaml", "httpx")
WITH_LITTLE = f"""
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN}:
            raise ImportError(f"a device has no {{name}}")
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script in an interpreter that cannot import what is not on a device."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "verifying", stillhouse.verifying)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("device", DEVICE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that serves the first champion of an agent."""
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(tmp_path / "agents"))
    (tmp_path / "agents").mkdir()
    write_agent(tmp_path, "flights")
    put_champion("flights", 1)
    return tmp_path / "home"


@contextlib.contextmanager
def serving(**options: Any) -> Iterator[str]:
    """A worker with a spool of its own, on a free port; yields its address."""
    agent = Agent("flights", follow=False, flush=False)
    settings = uvicorn.Config(Server([agent], **options), port=0, log_level="error", lifespan="on")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        agent.close()


def make(module: ModuleType, folder: Path) -> Any:
    """The device of a folder; its key was installed before."""
    return module.Device("flights", stillhouse.verifying.read_keys(os.environ["STILLHOUSE_TRUSTED_KEYS"]), folder)


def close(on_device: Any) -> None:
    on_device._held.close()


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Observations and decisions, after a flush."""
    base = KnowledgeBase(config.load("flights"))
    flush(base)
    return base.read("observations"), base.read("decisions")


def in_log(on_device: Any) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in on_device.log.iterdir())


# --------------------------------------------------------------------------- the network comes and goes


def test_decisions_made_offline_are_handed_in_and_the_next_champion_is_taken_over(
    device: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_device = make(device, tmp_path / "device")
    monkeypatch.setenv("STILLHOUSE_TOKEN", "a-token")
    with pytest.raises(SystemExit, match="no champion on this device"):
        on_device.decide(ROWS[0])
    with serving(guard=AccessGuard(("a-token",))) as server:
        assert on_device.pull(server) == "flights@1"
        assert on_device.pull(server) is None  # 304: by its ETag
    made = [on_device.decide(row | {"observation_id": f"o{i}"}) for i, row in enumerate(ROWS)]
    expected = Variant(on_device.folder / on_device.state["model"]).predict(pd.DataFrame(ROWS))
    assert [row["action"] for row in made] == expected["action"].tolist()
    on_device.sync(server)  # it is gone
    assert "hand_in: not now" in capsys.readouterr().err and in_log(on_device) == len(ROWS)

    put_champion("flights", 2)
    with serving(guard=AccessGuard(("a-token",))) as server:
        on_device.sync(server)
        assert "hand_in: 9\npull: flights@2\n" in capsys.readouterr().err
        assert on_device.decide(ROWS[0])["version"] == "flights@2"
    observations, decisions = tables()
    assert observations["observation_id"].tolist() == [f"o{i}" for i in range(9)]
    assert decisions["action"].tolist() == [row["action"] for row in made]
    probabilities = np.stack(decisions["probabilities"].tolist())
    np.testing.assert_allclose(probabilities, expected[["p_on_time", "p_late"]].to_numpy(), atol=1e-7)
    assert set(decisions["version"]) == {"flights@1"} and in_log(on_device) == 1


def test_a_decision_counts_once_however_often_and_wherever_it_is_handed_in(
    device: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_device, call = make(device, tmp_path / "device"), device.call

    def lose_the_answer(*request: Any, **options: Any) -> Any:
        call(*request, **options)
        raise OSError("the network is gone")

    with serving() as first, serving() as second:
        on_device.pull(first)
        for row in ROWS[:4]:
            on_device.decide(row)
        monkeypatch.setattr(device, "call", lose_the_answer)
        for server in (first, second, first):
            with pytest.raises(OSError, match="gone"):
                on_device.hand_in(server)
        assert len(tables()[1]) == 4  # some of it is in the tables when the rest arrives
        monkeypatch.setattr(device, "call", call)
        for row in ROWS[4:]:
            on_device.decide(row)
        assert on_device.hand_in(second) == len(ROWS) and on_device.hand_in(second) == 0
    observations, decisions = tables()
    assert len(observations) == len(decisions) == decisions["decision_id"].nunique() == len(ROWS)


def test_what_the_server_does_not_accept_is_set_aside_and_stops_nothing(device: ModuleType, tmp_path: Path) -> None:
    on_device = make(device, tmp_path / "device")
    with serving() as server:
        on_device.pull(server)
        for row in (*ROWS[:3], ROWS[3] | {"colour": "red"}, *ROWS[4:]):
            on_device.decide(row)
        assert on_device.hand_in(server) == len(ROWS)
    (refused,) = on_device.folder.glob("refused-*")
    reason, line = refused.read_text().splitlines()
    assert "colour" in json.loads(reason)["error"]["message"]
    assert json.loads(line)["observation"]["hour"] == 3 and len(tables()[1]) == len(ROWS) - 1


def test_kill_9_loses_no_decision_that_was_printed_and_a_device_needs_little(
    device: ModuleType, tmp_path: Path
) -> None:
    pem = tmp_path / "flights.pub"
    pem.write_text(os.environ["STILLHOUSE_TRUSTED_KEYS"])
    parts = [shutil.copy(path, tmp_path) for path in (DEVICE, Path(stillhouse.verifying.__file__))]
    command = [
        sys.executable,
        "-c",
        WITH_LITTLE,
        str(tmp_path),
        parts[0],
        "flights",
        str(pem),
        str(tmp_path / "device"),
    ]
    with serving() as server:
        pulled = subprocess.run(
            [*command, server], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        )
        assert "pull: flights@1" in pulled.stderr
    printed = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None and process.stdout is not None
        for row in ROWS:
            process.stdin.write(json.dumps(row) + "\n")
            printed.append(json.loads(process.stdout.readline()))
        with pytest.raises(BlockingIOError):  # one process at a time uses the folder
            make(device, tmp_path / "device")
        process.send_signal(signal.SIGKILL)
    on_device = make(device, tmp_path / "device")
    (file,) = on_device.log.iterdir()
    file.write_bytes(file.read_bytes() + b'12345678 {"decision_id": "cut o')  # a line that a kill has cut off
    with serving() as server:
        assert on_device.hand_in(server) == len(ROWS)
    decisions = tables()[1]
    assert decisions["action"].tolist() == [row["action"] for row in printed]
    assert len(decisions) == len(ROWS) and not any(on_device.log.iterdir())


# --------------------------------------------------------------------------- signatures


def archive_of(folder: Path, **changed: bytes) -> bytes:
    """The archive that a server hands out, with changed files."""
    return pack({path.name: path.read_bytes() for path in folder.iterdir()} | changed, "flights@2").content


def test_nothing_of_a_model_is_loaded_that_is_not_as_it_was_signed(
    device: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_device = make(device, tmp_path / "device")
    with serving() as server:
        on_device.pull(server)
        first = (on_device.folder / "champion.tar.gz").read_bytes()
        put_champion("flights", 2)
        with serving() as again:
            assert on_device.pull(again) == "flights@2"
    folder = on_device.folder / on_device.state["model"]
    evil = f"open({str(tmp_path / 'imported')!r}, 'w')\n".encode() + (folder / "variant.py").read_bytes()

    def offered(content: bytes) -> Callable[..., tuple[int, bytes, str]]:
        return lambda *_, **__: (200, content, '"etag"')

    for content, reason in (
        (archive_of(folder, **{"variant.py": evil}), "others than were signed: 'variant.py'"),
        (archive_of(folder, **{"more.py": b""}), "not signed: 'more.py'"),
        (first, "withdrawn: it is release 1, and release 2 was seen"),
        (b"no archive", "cannot be read as .tar.gz"),
    ):
        monkeypatch.setattr(device, "call", offered(content))
        with pytest.raises(stillhouse.verifying.VerificationError, match=reason):
            on_device.pull("http://anywhere")
        assert on_device.decide(ROWS[0])["version"] == "flights@2"
    close(on_device)

    stranger = device.Device("flights", {"0" * 16: next(iter(on_device.keys.values()))}, tmp_path / "stranger")
    monkeypatch.setattr(device, "call", offered(archive_of(folder)))
    with pytest.raises(stillhouse.verifying.VerificationError, match="not trusted here"):
        stranger.pull("http://anywhere")

    (folder / "variant.py").write_bytes(evil)  # on the device's own disk
    damaged = make(device, on_device.folder)
    assert damaged.champion is None and in_log(damaged) == 4
    assert damaged.pull("http://anywhere") == "flights@2"  # asked for without an ETag
    assert not (tmp_path / "imported").exists()


# --------------------------------------------------------------------------- the page

CHECK_PAGE = """
import {{ Encoder, load, textOf, verify }} from "{module}";
import {{ readFileSync }} from "node:fs";
const {{ columns, rows, values, archive, pem, damaged }} = JSON.parse(readFileSync(0, "utf8"));
const encoder = new Encoder(columns);
const matrix = rows.map((row) => Array.from(encoder.encode(row), (x) => (Number.isNaN(x) ? null : x)));
const bytes = (text) => Uint8Array.from(Buffer.from(text, "base64"));
const reason = (promise) => promise.then(() => "verified", (error) => error.message);
const known = {{ key: pem, agent: "flights" }};
console.log(JSON.stringify({{
  matrix,
  texts: values.map((value) => textOf(value)),
  verified: (await verify(bytes(archive), known)).number,
  refused: [
    await reason(verify(bytes(damaged), known)),
    await reason(verify(bytes(archive), {{ ...known, release: 2 }})),
    await reason(verify(bytes(archive), {{ ...known, agent: "router" }})),
    await reason(verify(bytes(archive).slice(0, 200), known)),
  ],
}}));
"""

TOKENS = ["[PAD]", "[UNK]", "book", "##ing", "a", "taxi", ",", "東", "e", "##e", "##s", "!", "οδοσ", "5", "##€"]
COLUMNS: list[dict[str, Any]] = [
    {"name": "wind", "type": "number"},
    {"name": "gate", "type": "category", "values": ["1", "true", "0.1", "1e-05", "JFK"]},
    {"name": "said", "type": "text", "tokens": TOKENS, "length": 6},
]
SAID = [
    "Booking a TAXI, please",
    None,
    "",
    "東京 ÉES!\u200b",
    "ΟΔΟΣ\u00a05€",
    "a" * 101 + " a",
    "\tbook\n\U0001f600",
    5,
]
GATES = [1, True, 0.1, 1e-05, "JFK", None, 1.0, "unknown"]
WINDS = [3.5, None, True, "1e3", " -7 ", 16777217, 0.1, -0.0]


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node here")
def test_the_reader_of_the_page_encodes_and_verifies_as_the_one_in_python(home: Path) -> None:
    import base64

    rows = [{"wind": w, "gate": g, "said": s} for w, g, s in zip(WINDS, GATES, SAID, strict=True)]
    values = [1e-05, 1.5e-07, 123456.789, 2**53 - 1, -0.0, 12, 0.1, 5e-324, 1e15 + 0.5, False, "1.0", None]
    folder = next((home / "runtime" / "flights").glob("variant-1-*"))
    pointer = json.loads((home / "runtime" / "flights" / "champion.json").read_text())
    signature = json.dumps({"model": pointer["signature"], "release": pointer["release"]}).encode()
    whole = archive_of(folder, **{"signature.json": signature})
    altered = archive_of(folder, **{"signature.json": signature, "manifest.json": b"{}"})
    given = {"columns": COLUMNS, "rows": rows, "values": values, "pem": os.environ["STILLHOUSE_TRUSTED_KEYS"]}
    given |= {name: base64.b64encode(part).decode() for name, part in (("archive", whole), ("damaged", altered))}
    script = CHECK_PAGE.format(module=ROOT / "examples" / "web" / "champion.mjs")
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    expected = Encoder(COLUMNS)(rows)
    np.testing.assert_array_equal(np.array(seen["matrix"], dtype=np.float32), expected)
    assert seen["texts"] == [stillhouse.variant.values.text_of(value) for value in values]
    assert seen["verified"] == 1
    assert [reason.partition(":")[0] for reason in seen["refused"]] == [
        "manifest.json is not as it was signed",
        "version 1 was withdrawn",
        "it is signed as flights of agent flights, not of agent router",
        "it cannot be read as .tar.gz",
    ]
