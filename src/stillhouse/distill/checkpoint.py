"""The state of a training on disk: one file without pickle, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stillhouse.files import atomic_file

__all__ = ["load_optimiser", "optimiser_state", "prefixed_state", "read", "tensors_below", "write"]


def write(path: Path, key: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write ``tensors`` and the JSON ``state`` to ``path``; ``key`` identifies the training they belong to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(copies, temporary, metadata={"key": key, "state": json.dumps(state)})


def read(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state that :func:`write` wrote under ``key``; None if absent, damaged or of another key."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["state"])  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The optimiser's moments as tensors, and the settings of its parameter groups that a schedule changes as JSON."""
    state = optimiser.state_dict()
    moments = {f"optimiser.{i}.{name}": value for i, values in state["state"].items() for name, value in values.items()}
    return moments, [{"lr": group["lr"], "betas": list(group["betas"])} for group in state["param_groups"]]


def load_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Restore what :func:`optimiser_state` returned."""
    state = optimiser.state_dict()
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = value
    state["state"] = moments
    for group, saved in zip(state["param_groups"], groups, strict=True):
        group |= {"lr": saved["lr"], "betas": tuple(saved["betas"])}
    optimiser.load_state_dict(state)


def prefixed_state(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's state under names that begin with ``prefix``."""
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def tensors_below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, under names without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
