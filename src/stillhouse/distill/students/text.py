"""The text student: token ids, numbers and category codes to one logit per action."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from stillhouse import config as settings
from stillhouse.config import AgentConfig, AnyEncoder, BagEncoder, ConvolutionEncoder, TransformerEncoder
from stillhouse.distill.students.columns import ColumnStudent, StudentModule, column_arguments, output_layers
from stillhouse.distill.students.encoders import TextEncoder, new_encoder
from stillhouse.distill.students.initial import initialise_from_teacher
from stillhouse.distill.students.kinds import InputColumns, make_student, register_reader, text_columns
from stillhouse.distill.vocabulary import cut_vocabulary, grow_vocabulary
from stillhouse.errors import ConfigError
from stillhouse.parts import TextEncoderState

__all__ = ["TextStudent"]


class TextStudent(ColumnStudent):
    """A small MLP on the vectors of text encoders, one per text column, and on encoded numbers and categories.

    The token ids of the texts are the last values of a row: 0 is padding, 1 the unknown token. An empty text consists
    of padding.

    :param edges: float ``[F, B + 1]``, see :class:`~stillhouse.distill.students.columns.ColumnStudent`.
    :param cardinalities: number of known values of each of the C categories.
    :param texts: ``(V, L)`` of each text column: the size of its vocabulary, and its number of token ids in a row.
    :param encoder: the section that describes the text encoders; every text column has an encoder of its own.
    :param actions: K.
    :param widths: hidden units per layer; empty: the logits are linear in the encoded inputs.
    :param embedding: maximum embedding width of a category, or the width of each.
    :param dropout: of hidden units and of text vectors.
    :param frozen: whether the embeddings of tokens are never trained.
    """

    def __init__(
        self,
        edges: Tensor,
        cardinalities: Sequence[int],
        texts: Sequence[tuple[int, int]],
        encoder: BagEncoder | ConvolutionEncoder | TransformerEncoder,
        actions: int,
        widths: Sequence[int],
        embedding: int | Sequence[int] = 8,
        dropout: float = 0.0,
        frozen: bool = False,
    ) -> None:
        super().__init__(edges, cardinalities, embedding)
        self.spec |= {
            "kind": "text",
            "texts": [[int(size), int(length)] for size, length in texts],
            "encoder": encoder.model_dump(mode="json"),
            "actions": actions,
            "widths": [int(w) for w in widths],
            "dropout": dropout,
            **({"frozen": True} if frozen else {}),
        }
        self.first_token = edges.shape[0] + len(cardinalities)
        self.lengths = [int(length) for _, length in texts]
        self.encoders = nn.ModuleList(new_encoder(encoder, size, length, dropout) for size, length in texts)
        for module in self.encoders if frozen else ():
            module.embedding.weight.requires_grad_(False)  # type: ignore[union-attr]
        width = sum(module.width for module in self.encoders)  # type: ignore[misc]  # int; nn.Module hides it
        self.dropout = nn.Dropout(dropout)
        self.layers = output_layers(self.columns_width + width, widths, actions, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, F + C + ΣL]`` as :func:`stillhouse.variant.encode` returns it, to logits ``[n, K]``."""
        tokens = x[:, self.first_token :].to(torch.int64)
        parts = self.read_columns(x)
        parts += [
            self.dropout(encoder(part))
            for encoder, part in zip(self.encoders, tokens.split(self.lengths, dim=1), strict=True)
        ]
        logits: Tensor = self.layers(torch.cat(parts, dim=1))
        return logits


@make_student.register
def _(
    section: settings.TextStudent,
    config: AgentConfig,
    columns: InputColumns,
    x: np.ndarray[Any, Any],
    initial: TextEncoderState | None,
) -> StudentModule:
    texts = [column for column in columns if column["type"] == "text"]
    sizes = [(len(column["tokens"]), column["length"]) for column in texts]
    arguments = column_arguments(section, config, columns, x)
    student = TextStudent(texts=sizes, encoder=section.encoder, frozen=section.freeze, **arguments)
    if section.initialised_by_teacher:
        teacher = _require_initial(initial, config)
        for column, encoder in zip(texts, student.encoders, strict=True):
            assert isinstance(encoder, TextEncoder)
            initialise_from_teacher(encoder, column["tokens"], teacher)
    return student


@text_columns.register
def _(
    section: settings.TextStudent, config: AgentConfig, rows: pd.DataFrame, initial: TextEncoderState | None
) -> InputColumns:
    if section.initialised_by_teacher:
        _require_initial(initial, config)
    columns = []
    for name in config.observations.texts:
        texts, size = rows[name].dropna().astype(str), section.vocabulary
        if initial is None:
            tokens = grow_vocabulary(texts, size)
        else:
            tokens = cut_vocabulary(texts, size, initial.tokens, fill=section.freeze)
        columns.append({"name": name, "type": "text", "tokens": tokens, "length": section.length})
    return columns


@register_reader("text")
def _(spec: dict[str, Any], folder: Path, config: AgentConfig | None) -> StudentModule:
    arguments = {key: value for key, value in spec.items() if key not in ("kind", "numbers", "bins", "encoder")}
    encoder = TypeAdapter[AnyEncoder](AnyEncoder).validate_python(spec["encoder"])
    return TextStudent(torch.zeros(spec["numbers"], spec["bins"] + 1), encoder=encoder, **arguments)


def _require_initial(initial: TextEncoderState | None, config: AgentConfig) -> TextEncoderState:
    if initial is None:
        raise ConfigError(
            f"{config.file}: student.initialise: is 'teacher', and none of the teachers offers its text "
            f"encoder: give one a method `text_encoder` (see stillhouse.parts.TextInitial), or write 'none'"
        )
    return initial
