"""Clients as they are on the package index, in their own processes and environment, before and behind the door."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from stillhouse.gateway.deciding import LocalDecision
from stillhouse.gateway.questions import ClosedQuestion
from stillhouse.gateway.tasks import Task
from tests.gateway.conftest import open_door
from tests.gateway.language_model import language_model
from tests.gateway.test_local_answers import ScriptedChampion
from tests.gateway.test_serve_command import ROOT, serving
from tests.gateway.upstream import Request, Upstream, upstream

ENVIRONMENT = ROOT / ".venv-peers" / "clients"
CLIENTS = Path(__file__).parent / "clients"
KEY = "sk-clients-test"
_OF_ONE_CONNECTION = {"host", "connection", "transfer-encoding", "content-length"}


def require(package: str) -> None:
    """Skip the test, by the package's name, if it could not be installed."""
    pattern = f"lib/python*/site-packages/{package.replace('-', '_')}-*.dist-info"
    if not list(ENVIRONMENT.glob(pattern)):
        pytest.skip(f"{package} is not installed: make test-clients")


def run(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the clients' environment, which sees nothing of ours."""
    settings = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "NO_PROXY": "127.0.0.1",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",  # traces would go to OpenAI
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # prices would be fetched
        "LANGSMITH_TRACING": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [str(ENVIRONMENT / "bin" / command[0]), *command[1:]],
        env=settings,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


class Stays(ScriptedChampion):
    """Says ``stay`` wherever it may."""

    async def decide(self, task: Task, tenant: str, caller: str, question: ClosedQuestion) -> LocalDecision | None:
        self.action = next((action for action in question.actions if "stay" in action), "stay")
        return await super().decide(task, tenant, caller, question)


@dataclass
class Doors:
    """An upstream alone, one behind ``stillhouse serve``, and one behind a door with a champion."""

    direct: Upstream
    passed: Upstream
    local: Upstream
    addresses: tuple[str, str, str]


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    folder = tmp_path_factory.mktemp("clients")
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("STILLHOUSE_HOME", str(folder / "passed"))
        direct, passed, local = (stack.enter_context(upstream(language_model())) for _ in range(3))
        address = stack.enter_context(serving("--upstream", f"{passed.url}/v1", log=folder / "log"))
        patch.setenv("STILLHOUSE_HOME", str(folder / "local"))
        running = stack.enter_context(open_door(local, decider=Stays()))
        yield Doors(direct, passed, local, (direct.url, address, running.url))


def as_sent(request: Request) -> Any:
    """What of a request does not belong to one connection."""
    headers = sorted((name.lower(), value) for name, value in request.headers)
    return request.method, request.target, [pair for pair in headers if pair[0] not in _OF_ONE_CONNECTION], request.body


def holds_tool_result(request: Request) -> bool:
    """Whether a request is the turn after a call."""
    body = request.json
    last = (body.get("messages") or body.get("input"))[-1]
    return last.get("role") == "tool" or last.get("type") == "function_call_output"


@pytest.mark.slow
@pytest.mark.parametrize("client", ["openai", "openai-agents", "litellm", "pydantic-ai-slim", "langchain-openai"])
def test_a_client_hears_the_upstream_or_the_champion(client: str, doors: Doors, tmp_path: Path) -> None:
    require(client)
    for behind in (doors.direct, doors.passed, doors.local):
        behind.requests.clear()
    # the upstream has to accept the credential once before a champion may answer
    accepted = {"model": "m", "messages": [{"role": "user", "content": "Is my key valid?"}]}
    chat = f"{doors.addresses[2]}/v1/chat/completions"
    assert httpx.post(chat, json=accepted, headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    doors.local.requests.clear()

    script = f"play_{client.removesuffix('-slim').replace('-', '_')}.py"
    result = run(tmp_path, "python", str(CLIENTS / script), *doors.addresses)
    assert result.returncode == 0, result.stderr[-4000:]
    direct, passed, local = json.loads(result.stdout.splitlines()[-1])  # litellm prints hints

    # passed on: both sides see exactly what they would see without us
    assert passed == direct and all("move" in answer for answer in direct["answers"].values())
    assert len(doors.direct.requests) >= len(direct["answers"])
    assert [as_sent(request) for request in doors.passed.requests] == [
        as_sent(request) for request in doors.direct.requests
    ]
    # answered locally: the same types, with the champion's actions, and no tokens
    assert local["answers"] == {step: answer.replace("move", "stay") for step, answer in direct["answers"].items()}
    assert local["types"] == direct["types"]
    assert set(direct["tokens"].values()) == {23} and set(local["tokens"].values()) == {0}
    # only the turns after a call went upstream, with the ids that we gave to the calls
    assert len(doors.local.requests) == local["turns"] and all(map(holds_tool_result, doors.local.requests))
    assert not any(b"call_upstream" in request.body for request in doors.local.requests)


# --------------------------------------------------------------------------- System One


class Hashing(ScriptedChampion):
    """Answers each System One question by a hash of its task and the state."""

    async def decide(self, task: Task, tenant: str, caller: str, question: ClosedQuestion) -> LocalDecision | None:
        self.asked.append((task, tenant, caller, question))
        digests = [
            hashlib.sha256(f"{task.key} {question.observation} {action}".encode()).digest()
            for action in question.actions
        ]
        weights = [1 + digest[0] for digest in digests]
        probs = {action: weight / sum(weights) for action, weight in zip(question.actions, weights, strict=True)}
        return LocalDecision(max(probs, key=probs.__getitem__), probs, "hash@1", "h.1", "answers", 0.0)


@pytest.fixture
def mock(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of jevcompat's own server, with a key or without one."""
    code = (
        "import sys; from jevcompat.mock import MockConfig, make_server\n"
        "server = make_server(MockConfig(key=sys.argv[1] or None), host='127.0.0.1', port=0)\n"
        "print(server.server_address[1], flush=True); server.serve_forever()"
    )
    require("jevcompat")
    command = [str(ENVIRONMENT / "bin" / "python"), "-c", code, request.param]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("mock", [KEY, ""], indirect=True, ids=["key", "no_key"])
@pytest.mark.parametrize("answers", ["upstream", "champion"])
def test_jevcompat_finds_every_requirement_met(mock: str, answers: str, tmp_path: Path, request: Any) -> None:
    has_key = "no_key" not in request.node.callspec.id
    champion = Hashing() if answers == "champion" else None
    with upstream() as unused, open_door(unused, url=mock, decider=champion) as running:
        command = ["jevcompat", "test", running.url, "--json", str(tmp_path / "report.json")]
        result = run(tmp_path, *command, *(["--key", KEY] if has_key else []))
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
        report = json.loads((tmp_path / "report.json").read_text())
    assert report["summary"]["verdict"] == "conformant"
    # one of the two that are about keys does not apply
    assert report["summary"]["MUST"] == {"passed": 32, "failed": 0, "skipped": 1, "tested": 32}
    assert champion is None or len(champion.asked) > 50
    assert [found["id"] for found in report["results"] if found["status"] == "fail"] == []
