"""``manifest.json``: what an artifact is, how far it is from the float32 model, and where it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from stillhouse.compress.build import Built
from stillhouse.compress.processor import processor
from stillhouse.files import file_digest
from stillhouse.version import __version__

__all__ = ["write_manifest"]

_FORMAT = 2


def write_manifest(folder: Path, described: Mapping[str, Any], built: Built, files: Sequence[str]) -> None:
    """Write it into ``folder``, with checksums of ``files`` there.

    :param described: what this kind of artifact says beside that.
    """
    manifest = {
        "format": _FORMAT,
        **described,
        "sha256": {name: file_digest(folder / name) for name in files},
        "agreement": built.agreement.model_dump(),
        "saturates": [each.model_dump() for each in built.saturates],
        "cpu": processor().model_dump(mode="json"),
        "versions": {
            "onnxruntime": onnxruntime.__version__,
            "onnx": onnx.__version__,
            "torch": str(torch.__version__),
            "stillhouse": __version__,
        },
    }
    text = json.dumps(manifest, ensure_ascii=False, allow_nan=False)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
