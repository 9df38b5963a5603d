"""Every environment of a make target or a benchmark pins all versions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PEERS = [
    "device",
    "evidently",
    "evidently_detection",
    "frouros",
    "jevstiller",
    "litserve",
    "neural-compressor",
    "nncf",
    "onnxruntime",
    "river",
    "scipy",
    "torch",
    "torchdistill",
    "tracer",
]


@pytest.mark.parametrize("name", [*PEERS, "clients", "schemathesis", "screens"])
def test_an_environment_names_one_version_of_each_package(name: str) -> None:
    lines = (ROOT / "environments" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if not line.startswith("#")]
    assert packages and all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", line) for line in packages)


def test_every_peer_has_its_file() -> None:
    peers_in_code = set()
    for file in (ROOT / "benchmarks").rglob("*.py"):
        peers_in_code |= set(re.findall(r"\bpeer\(\"([\w-]+)\"", file.read_text(encoding="utf-8")))
    assert peers_in_code <= set(PEERS)


def test_make_installs_nothing_that_is_not_pinned() -> None:
    installs = re.findall(r"pip install ([^\n]*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(installs) == 7
    for line in installs:
        pinned = "--requirement environments/" in line or "--editable" in line  # under PIP_CONSTRAINT
        assert pinned or (
            "--no-deps" in line and all("==" in argument for argument in line.split() if argument[0] not in "-")
        ), line


def test_what_the_web_page_loads_is_pinned_with_checksums() -> None:
    folder = ROOT / "environments" / "web"
    asked = json.loads((folder / "package.json").read_text(encoding="utf-8"))["dependencies"]
    locked = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert locked.pop("")["dependencies"] == asked
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in asked.values())
    assert all(package["integrity"].startswith("sha512-") for package in locked.values())
