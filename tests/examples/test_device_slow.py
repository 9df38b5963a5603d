"""In full: the demo of a device in its own environment, and the page in headless Chromium."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples import device_page
from stillhouse.config import DynamicInt8, Fp32, StaticInt8
from stillhouse.serving.archive import pack
from stillhouse.variant import Variant
from tests.compress.models_for_tests import ENCODERS, sentences, text_student
from tests.compress.test_text_students import make
from tests.registry.conftest import signed_folder, variant_folder

ROOT = Path(__file__).parents[2]
DEVICE_PYTHON = ROOT / ".venv-peers" / "device" / "bin" / "python"
BROWSER_PYTHON = ROOT / ".venv-screens" / "bin" / "python"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
NEEDED = (BROWSER_PYTHON, CHROMIUM, device_page.RUNTIME / "ort.wasm.min.mjs")
MISSING = [str(path) for path in NEEDED if not Path(path).exists()]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
in_browser = pytest.mark.skipif(bool(MISSING), reason=f"not there: {MISSING} (make test-slow; apt install chromium)")


@pytest.mark.skipif(not DEVICE_PYTHON.exists(), reason="make .venv-peers/device/.installed")
def test_the_story_of_a_device(tmp_path: Path) -> None:
    needs = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    names = ("pandas", "stillhouse", "mlflow", "torch", "pyarrow", "numpy", "onnxruntime", "cryptography")
    there = subprocess.run([DEVICE_PYTHON, "-c", needs, *names], capture_output=True, text=True, check=True, cwd="/")
    assert there.stdout.strip() == "['numpy', 'onnxruntime', 'cryptography']"

    environment = os.environ | {"STILLHOUSE_HOME": str(tmp_path)}
    for name in ("STILLHOUSE_SIGNING_KEY", "STILLHOUSE_TRUSTED_KEYS", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "examples.device_demo"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    summary = json.loads((tmp_path / "demo" / "device" / "summary.json").read_text())
    assert summary["lost"] == summary["doubled"] == 0
    assert summary["decided_on_the_device"] == summary["in_the_knowledge_base"] == sum(summary["versions"].values())
    assert summary["versions"] == {"flights@1": 500, "flights@2": 250}


# --------------------------------------------------------------------------- the page


@contextmanager
def site(folder: Path, key: Path) -> Iterator[tuple[str, list[int]]]:
    """The page of a champion; yields its address, and the statuses with which the champion was answered."""
    signature, release = signed_folder(folder, "flights", 1)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    files["signature.json"] = json.dumps({"model": signature, "release": release}).encode()
    archive, statuses = pack(files, "flights@1"), list[int]()
    key.write_text(os.environ["STILLHOUSE_TRUSTED_KEYS"])

    class Champion(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["If-None-Match"] == archive.headers["etag"]
            statuses.append(304 if known else 200)
            self.send_response(statuses[-1])
            for name, value in {**archive.headers, "content-type": "application/gzip"}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"" if known else archive.content)

        def log_message(self, *_: object) -> None: ...

    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Champion)
    page = device_page.make_server(key, f"http://127.0.0.1:{upstream.server_port}")
    for server in (upstream, page):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{page.server_port}", statuses
    for server in (upstream, page):
        server.shutdown()
        server.server_close()


def browse(*requests: dict[str, Any]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [BROWSER_PYTHON, ROOT / "benchmarks" / "device_browser.py"],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def require_the_same(decisions: Sequence[dict[str, Any]], folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    variant = Variant(folder)  # asked row by row, as the page: int8 of a batch depends on the other rows
    expected = [variant.decide(row) for row in rows]
    for mine, theirs in zip(decisions, expected, strict=True):
        assert mine["probabilities"] == pytest.approx(theirs.probabilities, abs=1e-5)
        assert mine["action"] == theirs.action


@in_browser
def test_the_page_decides_as_the_reader_in_python_and_without_a_network(tmp_path: Path) -> None:
    folder = variant_folder(tmp_path / "variant", "fp32", seed=1)
    rng = np.random.default_rng(0)
    rows = [
        {
            "wind": None if i % 7 == 0 else float(rng.normal(0, 5)),
            "hour": i % 24,
            "origin": ["EWR", "JFK", "X", None][i % 4],
        }
        for i in range(60)
    ]
    with site(folder, tmp_path / "key.pub") as (address, statuses):
        fill = {"wind": "3.5", "hour": "7", "origin": "JFK"}
        seen, stranger = browse(
            {"url": f"{address}/?agent=flights", "rows": rows, "fill": fill, "image": str(tmp_path / "page.png")},
            {"url": f"{address}/?agent=router"},
        )
        assert statuses == [200, 304, 200]
    require_the_same(seen["decisions"], folder, rows)
    expected = Variant(folder).decide({"wind": 3.5, "hour": 7, "origin": "JFK"})
    assert (
        seen["shown"].startswith(expected.action)
        and f"{100 * max(expected.probabilities.values()):.1f} %" in seen["shown"]
    )
    assert seen["state"].startswith("flights@1 (release 1,") and seen["error"] is None
    assert all(asked.startswith(address) for asked in seen["requests"]), "the page loads something from elsewhere"
    assert "not of agent router" in stranger["error"] and stranger["state"].startswith("No decision")
    assert (tmp_path / "page.png").stat().st_size > 5_000


@in_browser
def test_the_page_reads_texts_and_compressed_students(tmp_path: Path) -> None:
    recipes = (Fp32(method="fp32"),), (DynamicInt8(method="int8_dynamic"),), (StaticInt8(method="int8_static"),)
    made = make(text_student(ENCODERS["transformer"]), tmp_path / "made", *recipes)
    rows = json.loads(sentences(40, 1).to_json(orient="records"))
    for name, candidate in made.items():
        folder = Path(shutil.copytree(candidate.folder, tmp_path / name))
        with site(folder, tmp_path / "key.pub") as (address, _):
            (seen,) = browse({"url": f"{address}/?agent=flights", "rows": rows})
        assert seen["error"] is None, name
        require_the_same(seen["decisions"], folder, rows)
