"""The section ``student``: the kinds of students, and the text encoders."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stillhouse.config.base import Section, Target
from stillhouse.config.explain import find_repeated

__all__ = [
    "AnyEncoder",
    "AnyStudent",
    "BagEncoder",
    "ConvolutionEncoder",
    "ModuleStudent",
    "StudentSection",
    "TabularStudent",
    "TextStudent",
    "TransformerEncoder",
]


class StudentSection(Section):
    """Base of every kind of student; ``distill/students/<kind>.py`` registers how it is made and loaded."""

    @property
    def reads_text(self) -> bool:
        """Whether the student has an input for text columns."""
        return False

    @property
    def initialised_by_teacher(self) -> bool:
        """Whether the student is initialised from a teacher's text encoder."""
        return False

    @property
    def can_be_updated(self) -> bool:
        """Whether a champion of this kind can be extended and fine-tuned; if not, refreshes train a new student."""
        return False


class TabularStudent(StudentSection):
    """A small MLP on category embeddings and piecewise-linear encodings of numbers; preprocessing is part of it."""

    kind: Literal["tabular"]
    widths: tuple[Annotated[int, Field(ge=2, le=4096)], ...] = Field(
        default=(64, 32), min_length=1, description="hidden units per layer"
    )
    bins: int = Field(default=12, ge=2, le=256, description="quantile bins of the piecewise-linear encoding")
    embedding: int = Field(default=8, ge=1, le=256, description="largest embedding width")
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def can_be_updated(self) -> bool:
        return True


class BagEncoder(Section):
    """The mean of the tokens' embeddings; their order does not count."""

    type: Literal["bag"]
    width: int = Field(default=128, ge=2, le=4096, description="width of an embedding")
    bigrams: int = Field(
        default=0,
        ge=0,
        le=1 << 20,
        description="rows of a hashed embedding table for pairs of neighbouring tokens; 0: none",
    )


class ConvolutionEncoder(Section):
    """Filters over neighbouring tokens, each followed by max pooling over the text."""

    type: Literal["convolution"]
    width: int = Field(default=64, ge=2, le=4096, description="width of an embedding")
    filters: int = Field(default=64, ge=1, le=4096, description="filters of each size")
    sizes: tuple[Annotated[int, Field(ge=1, le=16)], ...] = Field(
        default=(1, 2, 3), min_length=1, description="neighbouring tokens that a filter reads"
    )

    @model_validator(mode="after")
    def _check_distinct(self) -> ConvolutionEncoder:
        if duplicates := find_repeated(self.sizes):
            raise ValueError(f"sizes: names {', '.join(map(str, duplicates))} more than once")
        return self


class TransformerEncoder(Section):
    """Layers of self-attention, built like those of BERT, and the mean of the last hidden states."""

    type: Literal["transformer"]
    width: int = Field(default=64, ge=2, le=4096, description="width of an embedding and of the hidden states")
    layers: int = Field(default=2, ge=1, le=24)
    heads: int = Field(default=4, ge=1, le=64, description="attention heads; divides `width`")
    feedforward: int = Field(default=256, ge=2, le=16_384, description="hidden units of the feed-forward network")

    @model_validator(mode="after")
    def _check_heads(self) -> TransformerEncoder:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide the width, {self.width}")
        return self


AnyEncoder = Annotated[BagEncoder | ConvolutionEncoder | TransformerEncoder, Field(discriminator="type")]


class TextStudent(StudentSection):
    """A small MLP on encoded texts, numbers and categories; the tokeniser is part of the student."""

    kind: Literal["text"]
    encoder: AnyEncoder = Field(
        default=BagEncoder(type="bag"), description="encoder that turns the tokens of a text into one vector"
    )
    vocabulary: int = Field(default=4000, ge=16, le=1 << 20, description="largest vocabulary of a text column (tokens)")
    length: int = Field(default=32, ge=1, le=512, description="tokens read of a text; the rest is cut off")
    initialise: Literal["none", "teacher"] = Field(
        default="none",
        description="teacher: initialise vocabulary, embeddings and, where they fit, layers from a teacher's text "
        "encoder",
    )
    freeze: bool = Field(
        default=False,
        description="embeddings stay the teacher's, and the vocabulary is filled up with tokens of the teacher that no "
        "training text has, so that such a word means what similar words mean; needs `initialise: teacher`",
    )
    widths: tuple[Annotated[int, Field(ge=2, le=4096)], ...] = Field(
        default=(128,), description="hidden units per layer; []: the logits are linear in the encoded input"
    )
    bins: int = Field(default=12, ge=2, le=256, description="quantile bins of the piecewise-linear encoding of numbers")
    embedding: int = Field(default=8, ge=1, le=256, description="largest embedding width of a category")
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_freeze(self) -> TextStudent:
        if self.freeze and self.initialise == "none":
            raise ValueError("freeze: only embeddings of a teacher can be kept: write `initialise: teacher`")
        return self

    @property
    def reads_text(self) -> bool:
        return True

    @property
    def initialised_by_teacher(self) -> bool:
        return self.initialise == "teacher"

    @property
    def can_be_updated(self) -> bool:
        return True


class ModuleStudent(StudentSection):
    """A torch module of the user's own; every refresh trains it from the weights that its factory returns."""

    kind: Literal["module"]
    target: Target = Field(
        description="'module:factory', called as (columns=…, actions=…, **settings); returns a torch.nn.Module"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="further keyword arguments of the factory")


AnyStudent = Annotated[TabularStudent | TextStudent | ModuleStudent, Field(discriminator="kind")]
