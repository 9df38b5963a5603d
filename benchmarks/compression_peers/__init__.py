"""Quantisers of other projects, each in its own environment, applied to a student in ONNX format."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers import peer

if TYPE_CHECKING:
    from benchmarks.compression_data import World

__all__ = ["PEERS", "points", "write_world"]

PEERS: dict[str, tuple[tuple[str, ...], str]] = {
    "onnxruntime": (
        ("onnxruntime==1.32.0", "onnx==1.23.2", "numpy==2.4.6", "onnx-ir==1.1.0", "sympy==1.14.0"),
        "with_onnxruntime.py",
    ),
    "nncf": (("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.32.0", "numpy==2.4.6"), "with_nncf.py"),
    "neural-compressor": (
        ("neural-compressor==3.7.1", "onnx==1.16.2", "onnxruntime==1.18.1", "numpy==1.26.4", "six==1.17.0"),
        "with_neural_compressor.py",
    ),
    "torch": (
        (
            "torch==2.13.0",
            "torchao==0.18.0",
            "numpy==2.4.6",
            "pandas==3.0.6",
            "pydantic==2.14.4",
            "pyyaml==6.0.3",
            "safetensors==0.8.0",
            "scipy==1.17.1",
            "setuptools==84.2.1",
        ),
        "with_torch.py",
    ),
}
"""By peer: the requirements of its environment, and the script that runs there."""

TIMEOUT = 600  # seconds per peer and student
_CALIBRATION = 512  # calibration rows


def write_world(world: World, folder: Path) -> Path:
    """Write the peers' input files of a world into ``folder`` and return it.

    ``model.onnx`` (float32, rows ``x`` to ``probabilities``), ``student.pt``, ``calibration.npy`` (rows of ``learned``,
    evenly spaced), ``validation.npz`` and ``test.npz`` with ``x`` and ``y``, and ``transformer.json``: the
    settings for transformer tools, empty if the student is no transformer.
    """
    import torch

    from stillhouse.compress.export import export_onnx

    folder.mkdir(parents=True, exist_ok=True)
    rows = world.encode("learned")
    rows = rows[np.linspace(0, len(rows) - 1, min(_CALIBRATION, len(rows))).astype(int)]
    (folder / "model.onnx").write_bytes(export_onnx(world.student, {"x": rows[:64]}).SerializeToString())
    torch.save(world.student, folder / "student.pt")
    np.save(folder / "calibration.npy", rows)
    (folder / "transformer.json").write_text(json.dumps(_transformer(world)), encoding="utf-8")
    for split in ("validation", "test"):
        np.savez(folder / f"{split}.npz", x=world.encode(split), y=world.labels[split])
    return folder


def _transformer(world: World) -> dict[str, int]:
    from stillhouse.config import TextStudent, TransformerEncoder

    student = None if world.config is None else world.config.student
    if not isinstance(student, TextStudent) or not isinstance(student.encoder, TransformerEncoder):
        return {}
    return {"heads": student.encoder.heads, "width": student.encoder.width}


def points(world_folder: Path, names: Sequence[str] = tuple(PEERS)) -> list[dict[str, Any]]:
    """Run every peer on the student in ``world_folder``, as written by :func:`write_world`; return its points.

    A point has ``point``, ``peer``, ``version`` and ``setting``, and one of: ``file``, an ONNX model that runs in ONNX
    Runtime here; ``probabilities``, an ``.npz`` with the probabilities for ``test`` (or only for its indices ``rows``),
    together with ``bytes`` and ``p50_ms``, ``p95_ms``, ``fp32_p50_ms`` and ``fp32_p95_ms``, measured in the peer's
    process; ``error``.
    """
    return [point for name in names for point in _run_peer(world_folder.resolve(), name)]


def _run_peer(folder: Path, name: str) -> list[dict[str, Any]]:
    requirements, script = PEERS[name]
    out, scripts = folder / name, Path(__file__).parent.resolve()
    points_file, stamp_file = out / "points.json", out / "made_of.txt"
    source_hash = _hash([folder / "model.onnx", folder / "calibration.npy", scripts / script], requirements)
    if stamp_file.exists() and stamp_file.read_text(encoding="utf-8") == source_hash:
        return [_checked_point(point, out, folder) for point in json.loads(points_file.read_text(encoding="utf-8"))]
    stamp_file.unlink(missing_ok=True)
    points_file.unlink(missing_ok=True)
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(scripts.parent.parent / "src"), "PYTHONWARNINGS": "ignore"}
    command = [str(peer(name, requirements).absolute()), str(scripts / script), str(folder), str(out)]
    out.mkdir(exist_ok=True)
    failed = ""
    with (out / "log.txt").open("w", encoding="utf-8") as log:
        try:
            completed = subprocess.run(
                command, env=os.environ | environment, stdout=log, stderr=log, cwd=out, timeout=TIMEOUT, check=False
            )
            failed = f"ended with {completed.returncode}" if completed.returncode else ""
        except subprocess.TimeoutExpired:
            failed = f"ran for more than {TIMEOUT} s"
    made_points: list[dict[str, Any]] = (
        json.loads(points_file.read_text(encoding="utf-8")) if points_file.exists() else []
    )
    if failed:
        log_tail = (out / "log.txt").read_text(encoding="utf-8", errors="replace")[-400:]
        made_points.append(
            {
                "point": f"{name}-rest",
                "peer": name,
                "version": requirements[0],
                "setting": "all that remained",
                "error": f"{failed}: {log_tail}",
            }
        )
    elif made_points:
        stamp_file.write_text(source_hash, encoding="utf-8")
    return [_checked_point(point, out, folder) for point in made_points]


def _hash(files: Sequence[Path], requirements: Sequence[str]) -> str:
    """Hash of a peer's inputs; its points are cached under it."""
    digest = hashlib.sha256(" ".join(requirements).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _checked_point(point: dict[str, Any], out: Path, folder: Path) -> dict[str, Any]:
    """The point with absolute paths; ``error`` replaces a file that ONNX Runtime cannot run here."""
    from stillhouse.compress.export import run_onnx
    from stillhouse.errors import ExportError

    for key in ("file", "probabilities"):
        if key in point:
            point[key] = str(out / point[key])
    if "file" in point:
        with np.load(folder / "validation.npz") as validation:
            rows = validation["x"][:4]
        try:
            run_onnx(Path(point["file"]).read_bytes(), {"x": rows})
        except ExportError as error:
            del point["file"]
            point["error"] = str(error)[:600]
    return point
