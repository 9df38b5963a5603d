"""Runs in a peer's environment: torch's int8, measured in this process, since it runs only in torch.

``python with_torch.py IN_FOLDER OUT_FOLDER``. Dynamic int8 needs the module itself (``student.pt``, so stillhouse must
be importable); static int8 works on the graph of ``torch.export`` for one row and is compiled by the inductor, which
needs a C++ compiler. The pages are "Quantization" of torch's documentation, and "PyTorch 2 Export Quantization with X86
Backend through Inductor" and "Quantized Inference" of torchao's.
"""

from __future__ import annotations

import copy
import io
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import record
from torch import Tensor, nn
from torch.ao.quantization import (
    float_qparams_weight_only_qconfig,
    per_channel_dynamic_qconfig,
    quantize_dynamic,
)

TIMED_CALLS = 200  # single rows
WARM_UP_CALLS = 30
MAX_SINGLE_ROWS = 900  # evenly spaced test rows for models that take single rows


def main() -> None:
    """Write probabilities and latencies per setting."""
    world_folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    student = torch.load(world_folder / "student.pt", weights_only=False).eval()
    rows = torch.from_numpy(np.load(world_folder / "calibration.npy"))
    test = torch.from_numpy(np.load(world_folder / "test.npz")["x"])

    def measure(build: Callable[[], tuple[Callable[[Tensor], Tensor], int]], file: Path) -> dict[str, Any]:
        with torch.inference_mode(False), torch.no_grad():
            model, size = build()
            for row in test[:WARM_UP_CALLS].split(1):
                model(row), student(row)
            times: dict[str, list[float]] = {"": [], "fp32_": []}
            for row in test[torch.arange(TIMED_CALLS) % len(test)].split(1):
                for name, module in (("", model), ("fp32_", student)):
                    start = time.perf_counter()
                    module(row)
                    times[name].append(1000 * (time.perf_counter() - start))
            # compiled models take one row
            count, batch = (len(test), 64) if isinstance(model, nn.Module) else (min(MAX_SINGLE_ROWS, len(test)), 1)
            indices = np.linspace(0, len(test) - 1, count).astype(int)
            answers = torch.cat([model(block) for block in test[indices].split(batch)]).softmax(dim=1).numpy()
        np.savez(file, test=answers, rows=indices)
        figures = {
            f"{name}p{level}_ms": float(np.percentile(call_ms, level))
            for name, call_ms in times.items()
            for level in (50, 95)
        }
        return figures | {"bytes": size}

    def dynamic(**settings: Any) -> tuple[Callable[[Tensor], Tensor], int]:
        model = quantize_dynamic(copy.deepcopy(student), **settings)
        return model, _state_bytes(model)

    def exported(**settings: Any) -> tuple[Callable[[Tensor], Tensor], int]:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config(**settings))
        prepared = prepare_pt2e(torch.export.export(student, (rows[:1],)).module(), quantizer)
        for row in rows[:200].split(1):
            prepared(row)
        converted = convert_pt2e(prepared)
        return _compile(converted), _state_bytes(converted)

    def quantize_ao(name: str) -> tuple[Callable[[Tensor], Tensor], int]:
        from torchao import quantization

        model = copy.deepcopy(student)
        quantization.quantize_(model, getattr(quantization, name)())
        size = _state_bytes(model)
        return _compile(model), size

    channels = {nn.Linear: per_channel_dynamic_qconfig, nn.Embedding: float_qparams_weight_only_qconfig}
    builds: dict[str, tuple[str, Callable[[], tuple[Callable[[Tensor], Tensor], int]]]] = {
        "torch-fp32-compiled": (
            "float32, torch.compile with freezing (for comparison)",
            lambda: (_compile(student), _state_bytes(student)),
        ),
        "torch-dynamic-default": ("quantize_dynamic, all defaults (Quantization)", dynamic),
        "torch-dynamic-best": (
            "quantize_dynamic, linear layers per channel, embeddings by their own config (Quantization)",
            partial(dynamic, qconfig_spec=channels),
        ),
        "torch-dynamic-linear": (
            "quantize_dynamic, linear layers alone, per channel (Quantization)",
            partial(dynamic, qconfig_spec={nn.Linear: per_channel_dynamic_qconfig}),
        ),
        "torch-pt2e-static-default": (
            "prepare_pt2e and convert_pt2e with the default x86 config, compiled with freezing (X86 Backend)",
            exported,
        ),
        "torch-pt2e-static-best": (
            "as torch-pt2e-static-default, reduce_range for processors without VNNI (X86 Backend)",
            partial(exported, reduce_range=True),
        ),
        "torch-pt2e-dynamic": (
            "as torch-pt2e-static-best, ranges of activations found in every call (X86 Backend)",
            partial(exported, is_dynamic=True, reduce_range=True),
        ),
        "torchao-int8-dynamic": (
            "quantize_ with Int8DynamicActivationInt8WeightConfig, compiled (Quantized Inference)",
            partial(quantize_ao, "Int8DynamicActivationInt8WeightConfig"),
        ),
        "torchao-int8-weights": (
            "quantize_ with Int8WeightOnlyConfig, compiled (Quantized Inference)",
            partial(quantize_ao, "Int8WeightOnlyConfig"),
        ),
    }
    settings = {point: (sentence, partial(measure, build)) for point, (sentence, build) in builds.items()}
    record(out, "torch", torch.__version__, settings, suffix=".npz")


def _compile(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Compile with the inductor and frozen weights."""
    from torch._inductor import config

    config.freezing = True
    config.cpp.threads = 1
    torch._dynamo.reset()
    compiled = torch.compile(model)
    return lambda row: compiled(row)


def _state_bytes(model: nn.Module) -> int:
    """Bytes of the weights as torch saves them."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return len(file.getvalue())


if __name__ == "__main__":
    main()
