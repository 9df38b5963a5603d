"""The compression target: the model, the rows that it is calibrated, measured and retrained on, and its quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from scipy.special import softmax
from torch import nn

__all__ = ["Array", "Columns", "CompressionTarget", "Feed", "ModelState"]

Array = np.ndarray[Any, Any]

Feed = Mapping[str, Array]
"""Arrays ``[n, …]`` by the name of the model's input."""

Columns = Sequence[Mapping[str, Any]]
"""Input columns as :func:`stillhouse.variant.encode` reads them."""


@dataclass(frozen=True)
class ModelState:
    """The torch model between two structural steps.

    :param module: torch module in evaluation mode on the CPU; its inputs are the arrays of a feed, in their order.
    :param columns: the columns that the one input ``x`` is encoded from; None for a model that reads arrays directly.
    """

    module: nn.Module
    columns: Columns | None = None


def _no_slices(probs: Array) -> Mapping[str, float]:
    return {}


@dataclass(frozen=True)
class CompressionTarget:
    """A model, with everything that is needed to build and measure smaller versions of it.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> from stillhouse.compress.export import export_onnx
        >>> module, rows = nn.Linear(4, 3).eval(), {"x": np.zeros((8, 4), np.float32)}
        >>> target = CompressionTarget(
        ...     model=export_onnx(module, rows),
        ...     calibration=lambda columns: rows,
        ...     validation=lambda columns: rows,
        ...     quality=lambda probs: float(probs.max(axis=1).mean()),
        ...     state=ModelState(module),
        ... )
        >>> target.columns is None
        True

    :param model: the float32 ONNX graph that every candidate is compared with; its node names identify the layers.
    :param state: the torch module that the graph was exported from; None if only the graph is available, and then no
        structural step can be applied.
    :param softmax: whether the exported graph ends in a softmax that the module does not have.
    :param calibration: representative rows, encoded with the given columns: activation ranges and importance scores
        are computed on them.
    :param validation: rows that quality is measured on, separate from the training rows, encoded with the given
        columns.
    :param quality: maps probabilities on the validation rows, ``[n, K]``, to a score in 0…1, higher is better.
    :param slices: maps the same probabilities to a score for each slice on which ``max_quality_loss`` must hold as
        well, for example the rows of a new action. The validation rows may contain more rows of a slice than
        ``quality`` is measured on.
    :param recover: maps a state and a number of epochs to the state after a short distillation; None if there are no
        rows to train on.
    :param graph_columns: input columns of a graph without a torch module, if it has columns.
    :param logits: whether the graph outputs logits; they are converted to probabilities before they are compared.
    :param output: name of the graph's first output.
    :param quality_name: what ``quality`` measures, in words.
    :param notes: further information for the owner of the model about its compression and evaluation.
    :param content_hash: hash of all data that determines the result of a recipe: rows, labels, teacher probabilities,
        settings.
    """

    model: onnx.ModelProto
    calibration: Callable[[Columns | None], Feed]
    validation: Callable[[Columns | None], Feed]
    quality: Callable[[Array], float]
    state: ModelState | None = None
    softmax: bool = True
    logits: bool = False
    output: str = "probabilities"
    recover: Callable[[ModelState, int], ModelState] | None = None
    content_hash: str = ""
    graph_columns: Columns | None = None
    slices: Callable[[Array], Mapping[str, float]] = field(default=_no_slices)
    quality_name: str = ""
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> Columns | None:
        """Input columns before any step."""
        return self.graph_columns if self.state is None else self.state.columns

    def to_probabilities(self, outputs: Array) -> Array:
        """The graph's outputs, ``[n, K]``, as probabilities."""
        return np.asarray(softmax(outputs, axis=1)) if self.logits else outputs
