"""Texts of which fewer tokens are read: the time of an encoder grows with their number."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from stillhouse.compress.subject import Feed, Form
from stillhouse.config import ShortTexts
from stillhouse.errors import ExportError

__all__ = ["shorten_texts", "shortenable"]

_FEWEST = 4  # tokens that are left of a text


def shortenable(form: Form) -> list[str]:
    """Names of the text columns of which fewer tokens could be read.

    Each has an encoder of its own in ``encoders``, and ``lengths`` tells how many tokens each encoder is given.
    """
    named = [column for column in form.columns or () if column["type"] == "text"]
    lengths = getattr(form.module, "lengths", None)
    if getattr(form.module, "encoders", None) is None or lengths is None or len(named) != len(lengths):
        return []
    return [str(column["name"]) for column in named if column["length"] > _FEWEST]


def shorten_texts(step: ShortTexts, form: Form, feed: Feed) -> Form:
    """The form that reads only the first ``1 − ratio`` of the tokens of its texts; what comes behind is cut off.

    :raises ExportError: if it reads no text, or none that could be shorter.
    """
    known = shortenable(form)
    if not known:
        raise ExportError(f"length: {type(form.module).__name__} reads no text of which fewer tokens could be read")
    module: Any = copy.deepcopy(form.module).eval()
    assert form.columns is not None
    columns, number = [], 0
    for column in form.columns:
        if column["type"] == "text":
            if column["name"] in known:
                length = max(_FEWEST, round(column["length"] * (1.0 - step.ratio)))
                column = {**column, "length": length}
                module.lengths[number] = length
                _shorten(module.encoders[number], length)
            number += 1
        columns.append(column)
    return Form(module, columns)


def _shorten(encoder: nn.Module, length: int) -> None:
    """Cut the learned places, one for each token and one for the start, to what is still read."""
    places = getattr(encoder, "places", None)
    if isinstance(places, Tensor):
        encoder.places = nn.Parameter(places[: length + 1].detach().clone())
