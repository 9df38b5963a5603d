"""Runs in a peer's environment: ONNX Runtime's quantisers at their defaults and with the documented advice.

``python with_onnxruntime.py IN_FOLDER OUT_FOLDER``. The pages are "Quantize ONNX models" and "Transformers Model
Optimization Tool" of onnxruntime.ai.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process
from recording import batches, record

INT8 = ["Conv", "Gemm", "MatMul", "Gather"]  # operators with most of the arithmetic and bytes
PAGE = "(page 'Quantize ONNX models')"


class Rows(CalibrationDataReader):
    """Calibration rows in batches of 32."""

    def __init__(self, rows: np.ndarray[Any, Any]) -> None:
        self._feeds: Iterator[dict[str, np.ndarray[Any, Any]]] = iter(batches(rows, 32))

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return next(self._feeds, None)


def main() -> None:
    """Write one model per setting."""
    world_folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    model, rows = world_folder / "model.onnx", np.load(world_folder / "calibration.npy")
    transformer_shape = json.loads((world_folder / "transformer.json").read_text(encoding="utf-8"))
    with TemporaryDirectory() as scratch:
        preprocessed, fused = Path(scratch, "ready.onnx"), Path(scratch, "fused.onnx")
        _preprocess(model, preprocessed)

        def dynamic(source: Path, file: Path, **settings: Any) -> None:
            quantize_dynamic(source, file, **settings)

        def static(source: Path, file: Path, **settings: Any) -> None:
            quantize_static(source, file, Rows(rows), **settings)

        def quantize_transformer(file: Path, **settings: Any) -> None:
            from onnxruntime.transformers.optimizer import optimize_model

            # the preprocessor has already done the work of opt_level=1, which needs torch
            optimized = optimize_model(
                str(preprocessed),
                "bert",
                num_heads=transformer_shape["heads"],
                hidden_size=transformer_shape["width"],
                opt_level=0,
            )
            print(optimized.get_fused_operator_statistics())
            optimized.save_model_to_file(str(fused))
            quantize_dynamic(fused, file, **settings)

        per_channel_reduced = {"per_channel": True, "reduce_range": True}
        u8s8 = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        best_settings = {"op_types_to_quantize": INT8} | per_channel_reduced | u8s8
        settings = {
            "ort-dynamic-default": ("quantize_dynamic, all defaults", partial(dynamic, model)),
            "ort-dynamic-best": (
                f"preprocessed, QInt8 weights per channel with reduce_range, as advised without VNNI {PAGE}",
                partial(dynamic, preprocessed, weight_type=QuantType.QInt8, **per_channel_reduced),
            ),
            "ort-dynamic-u8u8": (
                f"preprocessed, QUInt8 weights, the way out where U8S8 saturates {PAGE}",
                partial(dynamic, preprocessed, weight_type=QuantType.QUInt8),
            ),
            "ort-static-default": ("quantize_static, all defaults: QDQ, QInt8, MinMax", partial(static, model)),
            "ort-static-best": (
                f"preprocessed, QDQ, QUInt8 activations, QInt8 weights per channel with reduce_range, MinMax {PAGE}",
                partial(static, preprocessed, **best_settings),
            ),
            "ort-static-entropy": (
                f"as ort-static-best, calibrated by entropy {PAGE}",
                partial(static, preprocessed, calibrate_method=CalibrationMethod.Entropy, **best_settings),
            ),
            "ort-static-percentile": (
                f"as ort-static-best, calibrated by percentile {PAGE}",
                partial(static, preprocessed, calibrate_method=CalibrationMethod.Percentile, **best_settings),
            ),
            "ort-static-qoperator": (
                f"as ort-static-best, in QOperator format {PAGE}",
                partial(static, preprocessed, quant_format=QuantFormat.QOperator, **best_settings),
            ),
            "ort-static-u8u8": (
                f"preprocessed, QDQ, QUInt8 activations and weights {PAGE}",
                partial(
                    static,
                    preprocessed,
                    op_types_to_quantize=INT8,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QUInt8,
                ),
            ),
            "ort-4bit-default": (
                f"weights of matrix products in 4 bits, blocks of 128 {PAGE}",
                partial(_quantize_4bit, preprocessed),
            ),
            "ort-4bit-best": (
                f"as ort-4bit-default, blocks of 32, embeddings too, accuracy level 4 {PAGE}",
                partial(
                    _quantize_4bit,
                    preprocessed,
                    block_size=32,
                    accuracy_level=4,
                    op_types_to_quantize=("MatMul", "Gather"),
                ),
            ),
        }
        if transformer_shape:
            settings["ort-transformer-dynamic"] = (
                "fused by the tool for transformers, then as ort-dynamic-best (page 'Transformers Model Optimization "
                "Tool')",
                partial(quantize_transformer, weight_type=QuantType.QInt8, **per_channel_reduced),
            )
        record(out, "ONNX Runtime", onnxruntime.__version__, settings)


def _preprocess(source: Path, target: Path) -> None:
    """Preprocess as the page advises; skip symbolic shape inference, which only transformers need, if it fails."""
    try:
        quant_pre_process(source, target)
    except Exception as error:  # it has no error class
        print(f"symbolic shape inference failed: {error}", file=sys.stderr)
        quant_pre_process(source, target, skip_symbolic_shape=True)


def _quantize_4bit(source: Path, file: Path, **settings: Any) -> None:
    config = DefaultWeightOnlyQuantConfig(
        **({"block_size": 128, "op_types_to_quantize": ("MatMul",)} | settings), quant_format=QuantFormat.QOperator
    )
    quantizer = MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
    quantizer.process()
    onnx.save(quantizer.model.model, file)


if __name__ == "__main__":
    main()
