"""The choice of the model output that is compressed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import softmax

from stillhouse.compress.target import Array
from stillhouse.errors import ExportError

__all__ = ["are_class_scores", "are_probabilities", "choose_output"]

_SUM_TOLERANCE = 1e-3  # of the sum of a row of probabilities


def choose_output(outputs: Mapping[str, Any], requested: str | None = None, labels: Array | None = None) -> str:
    """The name of the output with the class scores: ``[n, K]`` numbers with K ≥ 2.

    If several outputs qualify, it is the requested one; otherwise the only one with one column per class of the labels,
    unless another output has a higher accuracy on them. If one output is the softmax of all the others, they count as
    one, and the probabilities are used.

    Example:
        >>> import numpy as np
        >>> choose_output({"hidden": np.zeros((4, 8, 8)), "logits": np.zeros((4, 3))})
        'logits'

    :param outputs: the model's outputs on all rows, by name.
    :param requested: the name that the user gave.
    :param labels: class of each row, 0…K − 1.
    :raises ExportError: naming the outputs and ``--output``, if several outputs qualify, or none does.
    """
    listing = "; ".join(f"{name} {_shape(output)}" for name, output in outputs.items())
    qualified = {name: output for name, output in outputs.items() if are_class_scores(output)}
    if requested is not None:
        if requested not in qualified:
            raise ExportError(
                f"--output {requested}: the model gives {listing}, and [n, K] numbers with K ≥ 2 are needed"
            )
        return requested
    if not qualified:
        raise ExportError(f"the model gives {listing or 'nothing'}, and a classifier gives [n, K] numbers with K ≥ 2")
    remaining = qualified if labels is None else _matching_labels(qualified, np.asarray(labels))
    if len(remaining) == 1:
        return next(iter(remaining))
    probabilities = [name for name, output in remaining.items() if are_probabilities(output)]
    if len(probabilities) == 1 and _is_softmax_of_others(remaining, probabilities[0]):
        return probabilities[0]
    raise ExportError(
        f"the model gives {listing}, and {' or '.join(remaining)} may be what decides: name it, such as --output "
        f"{[*remaining][-1]}"
    )


def are_class_scores(output: Any) -> bool:
    """Whether it is a float array ``[n, K]`` with K ≥ 2."""
    return isinstance(output, np.ndarray) and output.dtype.kind == "f" and output.ndim == 2 and output.shape[1] > 1


def are_probabilities(outputs: Array) -> bool:
    """Whether every row of float ``[n, K]`` is in 0…1 and sums to 1, within a tolerance of 0.001."""
    if not np.isfinite(outputs).all():
        return False
    in_range = outputs.min() >= -_SUM_TOLERANCE and outputs.max() <= 1 + _SUM_TOLERANCE
    return bool(in_range and np.abs(outputs.sum(axis=1) - 1).max() <= _SUM_TOLERANCE)


def _matching_labels(outputs: Mapping[str, Array], labels: Array) -> Mapping[str, Array]:
    """The outputs with one column per class, if one of them has the highest accuracy; otherwise all outputs."""
    if labels.dtype.kind not in "iufb" or any(len(output) != len(labels) for output in outputs.values()):
        return outputs
    matching = {name: output for name, output in outputs.items() if output.shape[1] == int(labels.max(initial=0)) + 1}
    accuracy = {name: float((output.argmax(axis=1) == labels).mean()) for name, output in outputs.items()}
    best = max(accuracy.values())
    return matching if any(accuracy[name] >= best for name in matching) else outputs


def _is_softmax_of_others(outputs: Mapping[str, Array], name: str) -> bool:
    """Whether this output is the softmax of each of the others."""
    probs = outputs[name]
    return all(
        other == name or (output.shape == probs.shape and np.allclose(softmax(output, axis=1), probs, atol=1e-3))
        for other, output in outputs.items()
    )


def _shape(output: Any) -> str:
    return str(list(output.shape)) if isinstance(output, np.ndarray) else type(output).__name__
