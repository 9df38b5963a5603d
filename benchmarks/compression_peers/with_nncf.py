"""Runs in a peer's environment: NNCF on an ONNX model, at its defaults and at what its documentation advises.

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

JUDGED = 400  # validation rows, evenly spaced, that accuracy control looks at


def main() -> None:
    """Write a model per setting."""
    given, out = Path(sys.argv[1]), Path(sys.argv[2])
    rows = np.load(given / "calibration.npy")
    transformer = json.loads((given / "transformer.json").read_text(encoding="utf-8"))
    kind = {"model_type": nncf.ModelType.TRANSFORMER} if transformer else {}
    best = kind | {"preset": nncf.QuantizationPreset.MIXED, "fast_bias_correction": False}
    said = "model_type=TRANSFORMER, " if transformer else ""

    def model() -> onnx.ModelProto:
        return onnx.load(given / "model.onnx")

    def calibration(count: int = 300) -> Any:
        return nncf.Dataset(batches(rows[:count], 1))

    def quantize(file: Path, **settings: Any) -> None:
        onnx.save(nncf.quantize(model(), calibration(), **settings), file)

    def controlled(file: Path, **settings: Any) -> None:
        judged = np.load(given / "validation.npz")
        places = np.linspace(0, len(judged["y"]) - 1, min(JUDGED, len(judged["y"]))).astype(int)
        pairs = list(zip(judged["x"][places], judged["y"][places], strict=True))
        found = nncf.quantize_with_accuracy_control(
            model(), calibration(), nncf.Dataset(pairs, lambda pair: pair), _quality, max_drop=0.01, **settings
        )
        onnx.save(found, file)

    def weights(file: Path, **settings: Any) -> None:
        onnx.save(nncf.compress_weights(model(), **settings), file)

    settings = {
        "nncf-default": ("nncf.quantize, all defaults, 300 rows (Post-Training Quantization)", quantize),
        "nncf-best": (
            f"{said}preset=MIXED, fast_bias_correction=False (Post-Training Quantization)",
            partial(quantize, **best),
        ),
        "nncf-mixed": (
            f"{said}preset=MIXED, fast bias correction (Post-Training Quantization)",
            partial(quantize, **kind, preset=nncf.QuantizationPreset.MIXED),
        ),
        "nncf-accuracy-control": (
            f"quantize_with_accuracy_control, max_drop=0.01, {said}preset=MIXED (Quantizing with Accuracy Control)",
            partial(controlled, **kind, preset=nncf.QuantizationPreset.MIXED),
        ),
        "nncf-weights-int8": ("compress_weights, all defaults: INT8_ASYM (Weights Compression)", weights),
        "nncf-weights-int4": (
            "compress_weights, INT4_SYM, ratio 1, group size 64 where it fits (Weights Compression)",
            partial(
                weights,
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
    """The score, and where that is a mean over rows, each row's. ``model``: as ONNX, or as NNCF has prepared it."""
    if isinstance(model, onnx.ModelProto):
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

        def answer(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.asarray(session.run(None, {"x": x})[0])
    else:

        def answer(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.asarray(next(iter(model({"x": x}).values())))

    x, y = zip(*pairs, strict=True)
    found, truth = np.concatenate([answer(row[None]) for row in x]), np.array(y)
    each = None if found.shape[1] == 2 else (found.argmax(axis=1) == truth).astype(float).tolist()
    return score(found, truth), each


if __name__ == "__main__":
    main()
