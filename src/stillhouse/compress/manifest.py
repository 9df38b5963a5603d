"""``manifest.json``: the contents of an artifact, its difference from the float32 model, and where it was built."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from stillhouse.compress.build import BuiltModel
from stillhouse.compress.processor import processor
from stillhouse.files import file_digest
from stillhouse.version import __version__

__all__ = ["write_manifest"]

_FORMAT = 2  # version of the manifest's format


def write_manifest(folder: Path, entries: Mapping[str, Any], built: BuiltModel, files: Sequence[str]) -> None:
    """Write the manifest into ``folder``, with checksums of ``files`` there.

    :param entries: the entries that only this kind of artifact has.
    """
    manifest = {
        "format": _FORMAT,
        **entries,
        "sha256": {name: file_digest(folder / name) for name in files},
        "agreement": built.agreement.model_dump(),
        "saturates": [layer.model_dump() for layer in built.saturates],
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
