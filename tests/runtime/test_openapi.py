"""schemathesis against our own OpenAPI: no 5xx, no accepted nonsense, no answer that is not documented."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.runtime.test_serving import ROOT, end, running, wait_until

SCHEMATHESIS = ROOT / ".venv-peers" / "schemathesis" / "bin" / "schemathesis"


@pytest.mark.slow
def test_the_server_keeps_what_its_description_promises(champion: Any, tmp_path: Path) -> None:
    if not SCHEMATHESIS.exists():
        pytest.skip("schemathesis is not there: make test-api")
    with running(STILLHOUSE_TOKENS="secret") as (process, address):
        wait_until(lambda: httpx.get(f"{address}/healthz").status_code == 200)
        done = subprocess.run(
            [
                str(SCHEMATHESIS),
                "--config-file",
                str(Path(__file__).parent / "schemathesis.toml"),
                "run",
                f"{address}/openapi.json",
                "--phases",
                "examples,coverage,fuzzing",
                "--max-examples",
                "15",
                "--continue-on-failure",
                "--seed",
                "1",
                "--no-color",
                "--header",
                "Authorization: Bearer secret",
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        assert end(process) == 0
