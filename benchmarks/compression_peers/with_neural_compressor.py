"""Runs in a peer's environment: Intel Neural Compressor on an ONNX model, at its defaults and tuned by quality.

``python with_neural_compressor.py IN_FOLDER OUT_FOLDER``. The pages are "Quantization", "Tuning Strategies" and "Smooth
Quant" of its documentation for the API that quantises ONNX models; versions after 3.7 no longer have it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import neural_compressor
import numpy as np
import onnx
from neural_compressor import PostTrainingQuantConfig, quantization
from neural_compressor.config import AccuracyCriterion, TuningCriterion
from recording import record, score

_FLOAT32 = {"weight": {"dtype": ["fp32"]}, "activation": {"dtype": ["fp32"]}}
ONLY_WEIGHT_OPERATORS = {"^((?!(MatMul|Gather|Conv|Gemm)).)*$": _FLOAT32}

Array = np.ndarray[Any, Any]


class Rows:
    """Calibration rows in batches with dummy labels, in the tool's format."""

    def __init__(self, x: Array, batch_size: int = 32) -> None:
        self.x, self.batch_size = x, batch_size

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for start in range(0, len(self.x), self.batch_size):
            batch = self.x[start : start + self.batch_size]
            yield batch, np.zeros(len(batch), dtype=np.int64)


class ErrorLog(logging.Handler):
    """Collects the errors that the tool only logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main() -> None:
    """Write one model per setting."""
    world_folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    rows, validation = np.load(world_folder / "calibration.npy"), np.load(world_folder / "validation.npz")

    def quality(model: onnx.ModelProto) -> float:
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return score(session.run(None, {"x": validation["x"]})[0], validation["y"])

    error_log = ErrorLog()
    logging.getLogger("neural_compressor").addHandler(error_log)

    def fit(file: Path, is_tuned: bool = False, **settings: Any) -> None:
        error_log.lines.clear()
        criterion = {
            "accuracy_criterion": AccuracyCriterion(tolerable_loss=0.01, criterion="absolute"),
            "tuning_criterion": TuningCriterion(max_trials=10, timeout=240),
        }
        config = PostTrainingQuantConfig(**settings, **(criterion if is_tuned else {}))
        quantized = quantization.fit(
            onnx.load(world_folder / "model.onnx"),
            config,
            calib_dataloader=Rows(rows),
            eval_func=quality if is_tuned else None,
        )
        if quantized is None:
            raise ValueError(f"no model was returned: {' '.join(error_log.lines)}")
        quantized.save(str(file))

    settings = {
        "inc-dynamic-default": ("approach=dynamic, all defaults (Quantization)", partial(fit, approach="dynamic")),
        "inc-dynamic-best": (
            "approach=dynamic, tuned by validation quality, at most 0.01 lost, 10 trials (Tuning Strategies)",
            partial(fit, is_tuned=True, approach="dynamic"),
        ),
        "inc-static-default": ("approach=static, all defaults (Quantization)", partial(fit, approach="static")),
        "inc-static-best": (
            "approach=static, weights' operators alone, as in the examples of its repository, tuned by validation "
            "quality, at most 0.01 lost, 10 trials (Tuning Strategies)",
            partial(fit, is_tuned=True, approach="static", op_type_dict=ONLY_WEIGHT_OPERATORS),
        ),
        "inc-static-smooth": (
            "approach=static with the recipe smooth_quant, alpha 0.5 (Smooth Quant)",
            partial(fit, approach="static", recipes={"smooth_quant": True, "smooth_quant_args": {"alpha": 0.5}}),
        ),
    }
    record(out, "Intel Neural Compressor", neural_compressor.__version__, settings)


if __name__ == "__main__":
    main()
