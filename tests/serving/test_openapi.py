"""schemathesis against the OpenAPI description: no 5xx, no invalid request accepted, no undocumented response."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import pytest

from tests.runtime.conftest import Installation
from tests.serving.test_supervisor import ROOT, start_server, terminate, wait_until

SCHEMATHESIS = ROOT / ".venv-peers" / "schemathesis" / "bin" / "schemathesis"


@pytest.mark.slow
def test_the_server_conforms_to_its_openapi_description(promoted: Installation, tmp_path: Path) -> None:
    if not SCHEMATHESIS.exists():
        pytest.skip("schemathesis is not installed: make test-api")
    with start_server(STILLHOUSE_TOKENS="secret") as (process, address):
        wait_until(lambda: httpx.get(f"{address}/healthz").status_code == 200)
        result = subprocess.run(
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
        assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
        assert terminate(process) == 0
