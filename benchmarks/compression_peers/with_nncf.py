"""Runs in a peer's environment: NNCF on an ONNX model, at its defaults and with the documented advice.

``python with_nncf.py IN_FOLDER OUT_FOLDER``. The pages are "Post-Training Quantization" (docs/usage/
post_training_compression) and "Weights Compression" of NNCF's repository, and "Quantizing with Accuracy Control" of
OpenVINO's documentation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
from recording import batches, record, score

MAX_VALIDATION_ROWS = 400  # evenly spaced validation rows for accuracy control


def main() -> None:
    """Write one model per setting."""
    world_folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    rows = np.load(world_folder / "calibration.npy")
    transformer = json.loads((world_folder / "transformer.json").read_text(encoding="utf-8"))
    model_type = {"model_type": nncf.ModelType.TRANSFORMER} if transformer else {}
    best = model_type | {"preset": nncf.QuantizationPreset.MIXED, "fast_bias_correction": False}
    model_type_note = "model_type=TRANSFORMER, " if transformer else ""

    def model() -> onnx.ModelProto:
        return onnx.load(world_folder / "model.onnx")

    def calibration(count: int = 300) -> Any:
        return nncf.Dataset(batches(rows[:count], 1))

    def quantize(file: Path, **settings: Any) -> None:
        onnx.save(nncf.quantize(model(), calibration(), **settings), file)

    def quantize_with_control(file: Path, **settings: Any) -> None:
        validation = np.load(world_folder / "validation.npz")
        indices = np.linspace(0, len(validation["y"]) - 1, min(MAX_VALIDATION_ROWS, len(validation["y"]))).astype(int)
        pairs = list(zip(validation["x"][indices], validation["y"][indices], strict=True))
        quantized = nncf.quantize_with_accuracy_control(
            model(), calibration(), nncf.Dataset(pairs, lambda pair: pair), _quality, max_drop=0.01, **settings
        )
        onnx.save(quantized, file)

    def compress_weights(file: Path, **settings: Any) -> None:
        onnx.save(nncf.compress_weights(model(), **settings), file)

    settings = {
        "nncf-default": ("nncf.quantize, all defaults, 300 rows (Post-Training Quantization)", quantize),
        "nncf-best": (
            f"{model_type_note}preset=MIXED, fast_bias_correction=False (Post-Training Quantization)",
            partial(quantize, **best),
        ),
        "nncf-mixed": (
            f"{model_type_note}preset=MIXED, fast bias correction (Post-Training Quantization)",
            partial(quantize, **model_type, preset=nncf.QuantizationPreset.MIXED),
        ),
        "nncf-accuracy-control": (
            f"quantize_with_accuracy_control, max_drop=0.01, {model_type_note}preset=MIXED "
            "(Quantizing with Accuracy Control)",
            partial(quantize_with_control, **model_type, preset=nncf.QuantizationPreset.MIXED),
        ),
        "nncf-weights-int8": ("compress_weights, all defaults: INT8_ASYM (Weights Compression)", compress_weights),
        "nncf-weights-int4": (
            "compress_weights, INT4_SYM, ratio 1, group size 64 where it fits (Weights Compression)",
            partial(
                compress_weights,
                mode=nncf.CompressWeightsMode.INT4_SYM,
                group_size=64,
                ratio=1.0,
                advanced_parameters=nncf.AdvancedCompressionParameters(
                    group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
                ),
            ),
        ),
    }
    record(out, "NNCF", nncf.__version__, settings)


def _quality(model: Any, pairs: Iterable[Any]) -> tuple[float, list[float] | None]:
    """The score, and per-row scores if it is a mean over rows. ``model``: ONNX, or as NNCF has prepared it."""
    if isinstance(model, onnx.ModelProto):
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

        def predict(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.asarray(session.run(None, {"x": x})[0])
    else:

        def predict(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.asarray(next(iter(model({"x": x}).values())))

    x, y = zip(*pairs, strict=True)
    probs, labels = np.concatenate([predict(row[None]) for row in x]), np.array(y)
    hits = None if probs.shape[1] == 2 else (probs.argmax(axis=1) == labels).astype(float).tolist()
    return score(probs, labels), hits


if __name__ == "__main__":
    main()
