"""Which of a stranger's outputs is the one to compress, and what quality is measured by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import softmax

from stillhouse.compress.subject import Array
from stillhouse.errors import ExportError

__all__ = ["are_probabilities", "choose_output", "is_answer"]

_ROUNDING = 1e-3  # of the sum of a row of probabilities


def choose_output(answers: Mapping[str, Any], wanted: str | None = None, labels: Array | None = None) -> str:
    """The name of the output that decides: the one that is ``[n, K]`` numbers with K ≥ 2.

    Of several it is the one that is asked for; else the only one with a column for each class of the labels, if none of
    the others decides better by them. Logits and their own probabilities are one and the same: of these the
    probabilities are kept.

    :param answers: what the model gives for all rows, by name.
    :param wanted: the name that was asked for.
    :param labels: class of each row, 0…K − 1.
    :raises ExportError: naming the outputs and ``--output``, if it may be one or another, or there is none.
    """
    shown = "; ".join(f"{name} {_shape(each)}" for name, each in answers.items())
    able = {name: each for name, each in answers.items() if is_answer(each)}
    if wanted is not None:
        if wanted not in able:
            raise ExportError(f"--output {wanted}: the model gives {shown}, and [n, K] numbers with K ≥ 2 are needed")
        return wanted
    if not able:
        raise ExportError(f"the model gives {shown or 'nothing'}, and a classifier gives [n, K] numbers with K ≥ 2")
    left = able if labels is None else _by_labels(able, np.asarray(labels))
    if len(left) == 1:
        return next(iter(left))
    probabilities = [name for name, each in left.items() if are_probabilities(each)]
    if len(probabilities) == 1 and _are_logits_of(left, probabilities[0]):
        return probabilities[0]
    raise ExportError(
        f"the model gives {shown}, and {' or '.join(left)} may be what decides: name it, such as --output {[*left][-1]}"
    )


def is_answer(given: Any) -> bool:
    """Whether it is ``[n, K]`` numbers with K ≥ 2."""
    return isinstance(given, np.ndarray) and given.dtype.kind == "f" and given.ndim == 2 and given.shape[1] > 1


def are_probabilities(answers: Array) -> bool:
    """Whether every row is in 0…1 and sums to 1."""
    if not np.isfinite(answers).all():
        return False
    inside = answers.min() >= -_ROUNDING and answers.max() <= 1 + _ROUNDING
    return bool(inside and np.abs(answers.sum(axis=1) - 1).max() <= _ROUNDING)


def _by_labels(able: Mapping[str, Array], labels: Array) -> Mapping[str, Array]:
    """The outputs that may have been meant by whoever labelled the rows."""
    if labels.dtype.kind not in "iufb" or any(len(each) != len(labels) for each in able.values()):
        return able
    fitting = {name: each for name, each in able.items() if each.shape[1] == int(labels.max(initial=0)) + 1}
    right = {name: float((each.argmax(axis=1) == labels).mean()) for name, each in able.items()}
    best = max(right.values())
    return fitting if any(right[name] >= best for name in fitting) else able


def _are_logits_of(left: Mapping[str, Array], probabilities: str) -> bool:
    """Whether all the others are what these are the softmax of."""
    said = left[probabilities]
    return all(
        name == probabilities or (each.shape == said.shape and np.allclose(softmax(each, axis=1), said, atol=1e-3))
        for name, each in left.items()
    )


def _shape(given: Any) -> str:
    return str(list(given.shape)) if isinstance(given, np.ndarray) else type(given).__name__
