"""What is compressed, and what it is fed, judged and retrained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from scipy.special import softmax
from torch import nn

__all__ = ["Array", "Columns", "Feed", "Form", "Subject"]

Array = np.ndarray[Any, Any]

Feed = Mapping[str, Array]
"""Arrays ``[n, …]`` by the name of the model's input."""

Columns = Sequence[Mapping[str, Any]]
"""Input columns as :func:`stillhouse.variant.encode` reads them."""


@dataclass(frozen=True)
class Form:
    """A model between two steps.

    :param module: torch module in evaluation mode on the CPU; its inputs are a feed's arrays, in order.
    :param columns: what its one input ``x`` is made of; None outside the loop, where a model reads arrays.
    """

    module: nn.Module
    columns: Columns | None = None


def _no_slices(probabilities: Array) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True)
class Subject:
    """A model, and all that making and measuring smaller forms of it needs.

    :param model: the float32 ONNX graph that every form is compared with; its nodes' names tell layers apart.
    :param form: the torch module it was exported from; None where there is only the graph, and no structural step
        can be taken.
    :param softmax: whether the exported graph ends in a softmax that the module has not.
    :param calibration: rows as they occur, encoded with these columns: ranges and importance are taken from them.
    :param judged: rows that quality is measured on, apart from those learned from, encoded with these columns.
    :param quality: from probabilities on the judged rows, ``[n, K]``, to a score in 0…1, higher is better.
    :param slices: from the same to a score for each part of the judged rows on which ``max_quality_loss`` must hold as
        well, such as rows of an action that is new; the judged rows may hold more of those than quality is measured on.
    :param recover: a form and a number of epochs to the same form after a short distillation; None where there is
        nothing to learn from.
    :param kept_columns: input columns of a graph without a torch module, where it has any.
    :param logits: whether what the graph gives is logits; they are compared and judged as probabilities.
    :param output: name of the graph's first output.
    :param measure: what quality is, in words.
    :param notes: what else its owner should know about how it is compressed and judged.
    :param source: hash of everything above that decides what a recipe gives: rows, outcomes, knowledge, settings.
    """

    model: onnx.ModelProto
    calibration: Callable[[Columns | None], Feed]
    judged: Callable[[Columns | None], Feed]
    quality: Callable[[Array], float]
    form: Form | None = None
    softmax: bool = True
    logits: bool = False
    output: str = "probabilities"
    recover: Callable[[Form, int], Form] | None = None
    source: str = ""
    kept_columns: Columns | None = None
    slices: Callable[[Array], Mapping[str, float]] = field(default=_no_slices)
    measure: str = ""
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> Columns | None:
        """Input columns before any step."""
        return self.kept_columns if self.form is None else self.form.columns

    def probabilities(self, given: Array) -> Array:
        """What the graph gives, ``[n, K]``, as probabilities."""
        return np.asarray(softmax(given, axis=1)) if self.logits else given
