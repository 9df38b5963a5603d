"""Virtual environments of the compared tools, one each, so that no tool dictates the versions of another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["peer"]

FOLDER = Path(__file__).parent.parent / ".venv-peers"
PINNED = Path(__file__).parent.parent / "environments"
"""Folder with one pins file per environment: every version in it, including indirect requirements."""


def peer(name: str, requirements: Sequence[str]) -> Path:
    """Path of the Python in ``.venv-peers/<name>``; creates that environment with ``requirements`` if needed.

    ``environments/<name>.txt`` pins every version in it.

    :raises SystemExit: with the end of pip's output, if the installation fails.
    """
    folder = FOLDER / name
    python, stamp = folder / "bin" / "python", folder / ".requirements"
    pins_file = PINNED / f"{name}.txt"
    required = "\n".join([*requirements, pins_file.read_text(encoding="utf-8")])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == required:
        return python
    print(f"setting up {folder.relative_to(FOLDER.parent)} (once)", file=sys.stderr)
    environment = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    install = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(pins_file)]
    for command in ([sys.executable, "-m", "venv", str(folder)], [*install, *requirements]):
        completed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if completed.returncode:
            raise SystemExit(f"the peer {name} cannot be installed:\n{completed.stderr[-2000:]}")
    stamp.write_text(required, encoding="utf-8")
    return python
