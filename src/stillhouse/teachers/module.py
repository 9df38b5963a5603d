"""A torch module as a teacher: a factory makes it, safetensors hold its weights, it runs in batches on the CPU."""

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
from stillhouse.teachers.answers import softmax, wrap_predict
from stillhouse.teachers.kinds import Member, MemberContext, answer_version, describe, open_member, require_version

if TYPE_CHECKING:
    from torch import nn

__all__ = ["make_module", "make_predictors", "weights_digest"]

RowFunction = Callable[[pd.DataFrame], Any]


@describe.register
def _(section: ModuleTeacher, context: MemberContext) -> dict[str, Any]:
    return {"version": answer_version(context, weights_digest=weights_digest(section, context.where))}


@open_member.register
def _(section: ModuleTeacher, context: MemberContext, entry: dict[str, Any]) -> Member:
    leaf, where = context.leaf, context.where
    require_version(context, entry, answer_version(context, weights_digest=weights_digest(section, where)))
    predict, features = make_predictors(section, where, context.config.folder)
    return Member(
        leaf.name,
        leaf.share,
        wrap_predict(leaf.name, context.config.actions, predict, features, section.call_timeout),
        entry["version"],
        user_object=partial(make_module, section, where, context.config.folder),
        has_features=section.features,
    )


def weights_digest(teacher: ModuleTeacher, where: str) -> str:
    """Hash of the weights file; empty if the section names none.

    :raises PartError: if the file cannot be read.
    """
    if teacher.weights is None:
        return ""
    try:
        return file_digest(Path(teacher.weights))
    except OSError as error:
        raise PartError(f"{where}.weights: {teacher.weights} cannot be read ({error.strerror})") from error


def make_module(teacher: ModuleTeacher, where: str, folder: Path | None) -> nn.Module:
    """The module with its weights, in evaluation mode.

    :param folder: the folder of the agent file.

    :raises PartError: if the factory fails or returns no module, or the weights do not fit the module.
    """
    import safetensors
    import safetensors.torch
    from torch import nn

    try:
        module = resolve(teacher.target, where=where, folder=folder)(**teacher.settings)
    except PartError:
        raise
    except Exception as error:
        raise PartError(
            f"{where}: {teacher.target} cannot be made with settings {teacher.settings}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise PartError(f"{where}: {teacher.target} gives a {type(module).__name__}, not a torch.nn.Module")
    if teacher.weights is not None:
        try:
            module.load_state_dict(safetensors.torch.load_file(teacher.weights))
        except (OSError, safetensors.SafetensorError, RuntimeError) as error:
            raise PartError(f"{where}.weights: {teacher.weights} does not fit {teacher.target}: {error}") from error
    return module.eval()


def make_predictors(teacher: ModuleTeacher, where: str, folder: Path | None) -> tuple[RowFunction, RowFunction | None]:
    """Two functions of rows: to probabilities ``[n, K]``, and to features ``[n, D]`` if the agent file asks for them.

    Their results are not checked.

    :raises PartError: as :func:`make_module`, or if features are asked for and the module has no method ``features``.
    """
    module: Any = make_module(teacher, where, folder)
    encode = _make_encoder(teacher, where, folder)
    if teacher.features and not callable(getattr(module, "features", None)):
        raise PartError(
            f"{where}.features: the {type(module).__name__} that {teacher.target} gives has no method "
            f"`features(encoded)`: add one that gives float32 [n, D], or leave `features` out"
        )

    def predict(rows: pd.DataFrame) -> Any:
        outputs = _forward_in_batches(module, encode, rows, teacher.batch_size, where)
        return softmax(outputs) if teacher.answers == "logits" else outputs

    def features(rows: pd.DataFrame) -> Any:
        return _forward_in_batches(module.features, encode, rows, teacher.batch_size, where)

    return predict, features if teacher.features else None


def _forward_in_batches(
    forward: Callable[[Any], Any], encode: RowFunction, rows: pd.DataFrame, batch_size: int, where: str
) -> Any:
    import torch

    outputs = []
    for start in range(0, len(rows), batch_size):
        batch = rows.iloc[start : start + batch_size]
        try:
            with torch.inference_mode():
                outputs.append(forward(torch.as_tensor(encode(batch))).detach().cpu().numpy())
        except Exception as error:
            raise PartError(f"{where}: fails on {len(batch)} rows: {type(error).__name__}: {error}") from error
    return np.concatenate(outputs)


def _make_encoder(teacher: ModuleTeacher, where: str, folder: Path | None) -> RowFunction:
    """The section's function ``encode``, or its number columns as float32 ``[n, D]``."""
    if teacher.encode is not None:
        encode: RowFunction = resolve(teacher.encode, where=f"{where}.encode", folder=folder)
        return encode
    columns = list(teacher.columns or ())
    return lambda rows: rows[columns].to_numpy(dtype=np.float32, copy=True)
