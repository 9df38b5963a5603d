"""A custom student: a torch module that the user's code makes."""

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
from stillhouse.distill.students.kinds import InputColumns, make_student, register_reader
from stillhouse.errors import PartError
from stillhouse.parts import TextEncoderState, resolve

__all__ = ["CustomStudent"]


class CustomStudent(StudentModule):
    """A module that the user's factory made.

    :param module: float32 ``[n, F + C]`` as :func:`stillhouse.variant.encode` returns it (a missing number is NaN) to
        logits ``[n, K]``.
    :param spec: identifies the factory and its settings.
    """

    def __init__(self, module: nn.Module, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec = spec
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Encoded rows ``[n, F + C]`` to logits ``[n, K]``."""
        logits: Tensor = self.module(x)
        return logits


@make_student.register
def _(
    section: ModuleStudent,
    config: AgentConfig,
    columns: InputColumns,
    x: np.ndarray[Any, Any],
    initial: TextEncoderState | None,
) -> StudentModule:
    return _build(section, config, columns)


@register_reader("module")
def _(spec: dict[str, Any], folder: Path, config: AgentConfig | None) -> StudentModule:
    if config is None:
        raise PartError(f"{folder} holds a custom student, which only its agent file can make")
    section = config.student
    if not isinstance(section, ModuleStudent) or (section.target, section.settings) != (
        spec["target"],
        spec["settings"],
    ):
        raise PartError(
            f"{config.file}: student: describes another one than was stored, {spec['target']} with "
            f"{spec['settings']}: refresh with mode=redistil, or restore the agent file"
        )
    return _build(section, config, json.loads((folder / "columns.json").read_text(encoding="utf-8")))


def _build(section: ModuleStudent, config: AgentConfig, columns: Sequence[Mapping[str, Any]]) -> CustomStudent:
    """The untrained module that ``student.target`` makes for ``columns``, checked on a few rows.

    The code that makes it comes from the agent file, never from a stored artifact.

    :raises PartError: if it cannot be imported, fails, or does not return finite logits ``[n, K]`` for rows ``[n, D]``,
        some of them with missing numbers.
    """
    where = f"{config.file}: student.target"
    factory = resolve(section.target, where=where, folder=config.folder)
    rows = torch.zeros(3, len(columns))
    for index, column in enumerate(columns):
        if column["type"] == "number":
            rows[0, index] = torch.nan
    try:
        module = factory(columns=list(columns), actions=config.actions, **section.settings)
        if not isinstance(module, nn.Module):
            raise TypeError(f"it gives a {type(module).__name__}, not a torch.nn.Module")
        with torch.no_grad():
            logits = module.eval()(rows)
    except Exception as error:
        raise PartError(f"{where}: {section.target} makes no student: {type(error).__name__}: {error}") from error
    if not isinstance(logits, Tensor) or logits.shape != (3, len(config.actions)):
        result = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise PartError(
            f"{where}: returns {result} for 3 rows; it must return logits [3, {len(config.actions)}], one per action"
        )
    if not torch.isfinite(logits).all():
        raise PartError(
            f"{where}: returns logits that are not finite; a missing number is NaN: let the module replace it"
        )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise PartError(f"{where}: the module has no parameters to learn")
    spec = {
        "kind": "module",
        "target": section.target,
        "settings": section.settings,
        "actions": len(config.actions),
    }
    return CustomStudent(module.train(), spec)
