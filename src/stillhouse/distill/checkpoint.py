"""A training's state on disk, in one file without pickle, written whole or not at all."""

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

__all__ = ["load_optimiser", "optimiser_state", "read", "write"]


def write(path: Path, key: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write ``tensors`` and the JSON ``state`` to ``path``; ``key`` says which training they belong to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as aside:
        save_file(copies, aside, metadata={"key": key, "state": json.dumps(state)})


def read(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What :func:`write` wrote under the same ``key``; None if there is none, it is broken or of another training."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["state"])  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The moments as tensors, and what the schedule has made of the groups' settings as JSON."""
    state = optimiser.state_dict()
    moments = {f"optimiser.{i}.{name}": value for i, kept in state["state"].items() for name, value in kept.items()}
    return moments, [{"lr": group["lr"], "betas": list(group["betas"])} for group in state["param_groups"]]


def load_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Take :func:`optimiser_state` back."""
    state = optimiser.state_dict()
    kept: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, place, moment = name.split(".")
            kept.setdefault(int(place), {})[moment] = value
    state["state"] = kept
    for group, saved in zip(state["param_groups"], groups, strict=True):
        group |= {"lr": saved["lr"], "betas": tuple(saved["betas"])}
    optimiser.load_state_dict(state)


def prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's state under names that begin with ``prefix``."""
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
