"""A torch module of the user's own as a student."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.config import AgentConfig, ModuleStudent
from stillhouse.distill.students.columns import StudentModule
from stillhouse.distill.students.kinds import InputColumns, make, reads
from stillhouse.errors import PartError
from stillhouse.parts import TextEncoderState, resolve

__all__ = ["OwnStudent"]


class OwnStudent(StudentModule):
    """What the user's factory made, with a description by which it is told from another.

    :param module: float32 ``[n, F + C]`` as :func:`stillhouse.variant.encode` makes it (a missing number is NaN) to
        logits ``[n, K]``.
    """

    def __init__(self, module: nn.Module, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Encoded rows ``[n, F + C]`` to logits ``[n, K]``."""
        logits: Tensor = self.module(x)
        return logits


@make.register
def _(
    section: ModuleStudent,
    config: AgentConfig,
    columns: InputColumns,
    x: np.ndarray[Any, Any],
    initial: TextEncoderState | None,
) -> StudentModule:
    return _made(section, config, columns)


@reads("module")
def _(spec: dict[str, Any], folder: Path, config: AgentConfig | None) -> StudentModule:
    if config is None:
        raise PartError(f"{folder} holds a student of the user's own, which only its agent file can make")
    described = config.student
    if not isinstance(described, ModuleStudent) or (described.target, described.settings) != (
        spec["target"],
        spec["settings"],
    ):
        raise PartError(
            f"{config.file}: student: describes another one than was stored, {spec['target']} with "
            f"{spec['settings']}: refresh with mode=redistil, or restore the agent file"
        )
    return _made(described, config, json.loads((folder / "columns.json").read_text(encoding="utf-8")))


def _made(section: ModuleStudent, config: AgentConfig, columns: Sequence[Mapping[str, Any]]) -> OwnStudent:
    """The module that ``student.target`` makes for these columns, untrained, and seen to answer.

    Which Python makes it is said by the agent file alone, never by what is stored.

    :raises PartError: if it does not import, fails, or does not give finite logits ``[n, K]`` for rows ``[n, D]``,
        some of them with missing numbers.
    """
    where = f"{config.file}: student.target"
    factory = resolve(section.target, where=where)
    rows = torch.zeros(3, len(columns))
    for place, column in enumerate(columns):
        if column["type"] == "number":
            rows[0, place] = torch.nan
    try:
        module = factory(columns=list(columns), actions=config.actions, **section.settings)
        if not isinstance(module, nn.Module):
            raise TypeError(f"it gives a {type(module).__name__}, not a torch.nn.Module")
        with torch.no_grad():
            logits = module.eval()(rows)
    except Exception as error:
        raise PartError(f"{where}: {section.target} makes no student: {type(error).__name__}: {error}") from error
    if not isinstance(logits, Tensor) or logits.shape != (3, len(config.actions)):
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise PartError(
            f"{where}: gives {found} for 3 rows; logits [3, {len(config.actions)}] are wanted, one per action"
        )
    if not torch.isfinite(logits).all():
        raise PartError(
            f"{where}: gives logits that are not finite; a missing number comes as NaN: let the module mend it"
        )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise PartError(f"{where}: the module has no parameters to learn")
    spec = {
        "kind": "module",
        "target": section.target,
        "settings": section.settings,
        "actions": len(config.actions),
    }
    return OwnStudent(module.train(), spec)
