"""A torch module as a teacher: made by a factory, weights from safetensors, asked in batches on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stillhouse.config import ModuleTeacher
from stillhouse.errors import PartError
from stillhouse.files import file_digest
from stillhouse.parts import resolve
from stillhouse.teachers.answers import in_process, softmax
from stillhouse.teachers.kinds import Member, MemberContext, answer_version, describe, open_member, require_version

if TYPE_CHECKING:
    from torch import nn

__all__ = ["fingerprint", "make", "predictor"]


@describe.register
def _(section: ModuleTeacher, context: MemberContext) -> dict[str, Any]:
    return {"version": answer_version(context, weights=fingerprint(section, context.where))}


@open_member.register
def _(section: ModuleTeacher, context: MemberContext, part: dict[str, Any]) -> Member:
    leaf, where = context.leaf, context.where
    require_version(context, part, answer_version(context, weights=fingerprint(section, where)))
    predict, features = predictor(section, where)
    answer = in_process(leaf.name, context.config.actions, predict, features, section.call_timeout)
    made = partial(make, section, where)
    return Member(leaf.name, leaf.share, answer, part["version"], part=made, features=section.features)


def fingerprint(teacher: ModuleTeacher, where: str) -> str:
    """Hash of the weights file, empty where there is none.

    :raises PartError: if the file cannot be read.
    """
    if teacher.weights is None:
        return ""
    try:
        return file_digest(Path(teacher.weights))
    except OSError as error:
        raise PartError(f"{where}.weights: {teacher.weights} cannot be read ({error.strerror})") from error


def make(teacher: ModuleTeacher, where: str) -> nn.Module:
    """The module with its weights, ready to be asked.

    :raises PartError: if the factory fails or gives no module, or the weights are not those of the module.
    """
    import safetensors
    import safetensors.torch
    from torch import nn

    try:
        made = resolve(teacher.target, where=where)(**teacher.settings)
    except PartError:
        raise
    except Exception as error:
        raise PartError(
            f"{where}: {teacher.target} cannot be made with settings {teacher.settings}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, nn.Module):
        raise PartError(f"{where}: {teacher.target} gives a {type(made).__name__}, not a torch.nn.Module")
    if teacher.weights is not None:
        try:
            made.load_state_dict(safetensors.torch.load_file(teacher.weights))
        except (OSError, safetensors.SafetensorError, RuntimeError) as error:
            raise PartError(f"{where}.weights: {teacher.weights} does not fit {teacher.target}: {error}") from error
    return made.eval()


Asked = Callable[[pd.DataFrame], Any]


def predictor(teacher: ModuleTeacher, where: str) -> tuple[Asked, Asked | None]:
    """Rows to float64 ``[n, K]``, as the module gives them or softened from its logits; and, if asked for, to features.

    Neither is checked yet.

    :raises PartError: as :func:`make`, or if there is no method ``features`` and the agent file asks for it.
    """
    module: Any = make(teacher, where)
    encode = _encoding(teacher, where)
    if teacher.features and not callable(getattr(module, "features", None)):
        raise PartError(
            f"{where}.features: the {type(module).__name__} that {teacher.target} gives has no method "
            f"`features(encoded)`: add one that gives float32 [n, D], or leave `features` out"
        )

    def predict(rows: pd.DataFrame) -> Any:
        said = _in_batches(module, encode, rows, teacher.batch_size, where)
        return softmax(said) if teacher.answers == "logits" else said

    def features(rows: pd.DataFrame) -> Any:
        return _in_batches(module.features, encode, rows, teacher.batch_size, where)

    return predict, features if teacher.features else None


def _in_batches(forward: Callable[[Any], Any], encode: Asked, rows: pd.DataFrame, size: int, where: str) -> Any:
    import torch

    said = []
    for start in range(0, len(rows), size):
        batch = rows.iloc[start : start + size]
        try:
            with torch.inference_mode():
                said.append(forward(torch.as_tensor(encode(batch))).detach().cpu().numpy())
        except Exception as error:
            raise PartError(f"{where}: fails on {len(batch)} rows: {type(error).__name__}: {error}") from error
    return np.concatenate(said)


def _encoding(teacher: ModuleTeacher, where: str) -> Callable[[pd.DataFrame], Any]:
    if teacher.encode is not None:
        encode: Callable[[pd.DataFrame], Any] = resolve(teacher.encode, where=f"{where}.encode")
        return encode
    columns = list(teacher.columns or ())
    return lambda rows: rows[columns].to_numpy(dtype=np.float32, copy=True)
