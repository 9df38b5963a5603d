"""The kinds of students, and the encoders of their texts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stillhouse.config.base import Section, Target
from stillhouse.config.wording import repeated

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
    """What a kind of student can do; ``distill/students/<kind>.py`` registers how it is made and read back."""

    @property
    def reads_text(self) -> bool:
        """Whether it has an input for text columns."""
        return False

    @property
    def initialised_by_teacher(self) -> bool:
        """Whether it begins with a teacher's text encoder."""
        return False

    @property
    def can_be_updated(self) -> bool:
        """Whether a champion of this kind can be grown and fine-tuned; else every refresh trains from the beginning."""
        return False


class TabularStudent(StudentSection):
    """Category embeddings and piecewise-linear numbers into a small MLP; preprocessing inside."""

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
    """The mean of the tokens' embeddings, wherever they stand."""

    type: Literal["bag"]
    width: int = Field(default=128, ge=2, le=4096, description="values of an embedding")
    bigrams: int = Field(
        default=0,
        ge=0,
        le=1 << 20,
        description="embeddings that pairs of neighbours share by hashing; 0: pairs are not looked at",
    )


class ConvolutionEncoder(Section):
    """Filters over neighbouring tokens, each at the place where it answers most."""

    type: Literal["convolution"]
    width: int = Field(default=64, ge=2, le=4096, description="values of an embedding")
    filters: int = Field(default=64, ge=1, le=4096, description="filters of each size")
    sizes: tuple[Annotated[int, Field(ge=1, le=16)], ...] = Field(
        default=(1, 2, 3), min_length=1, description="neighbouring tokens that a filter sees"
    )

    @model_validator(mode="after")
    def _distinct(self) -> ConvolutionEncoder:
        if twice := repeated(self.sizes):
            raise ValueError(f"sizes: names {', '.join(map(str, twice))} more than once")
        return self


class TransformerEncoder(Section):
    """A few layers of self-attention, built like BERT's, and the mean of what they give."""

    type: Literal["transformer"]
    width: int = Field(default=64, ge=2, le=4096, description="values of an embedding, and between layers")
    layers: int = Field(default=2, ge=1, le=24)
    heads: int = Field(default=4, ge=1, le=64, description="of attention; divides `width`")
    feedforward: int = Field(default=256, ge=2, le=16_384, description="hidden units between two layers")

    @model_validator(mode="after")
    def _whole_heads(self) -> TransformerEncoder:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide the width, {self.width}")
        return self


AnyEncoder = Annotated[BagEncoder | ConvolutionEncoder | TransformerEncoder, Field(discriminator="type")]


class TextStudent(StudentSection):
    """Texts by an encoder of their tokens, beside numbers and categories, into a small MLP; tokeniser inside."""

    kind: Literal["text"]
    encoder: AnyEncoder = Field(default=BagEncoder(type="bag"), description="what makes one vector of a text's tokens")
    vocabulary: int = Field(default=4000, ge=16, le=1 << 20, description="tokens, at most")
    length: int = Field(default=32, ge=1, le=512, description="tokens of a text that are read; the rest is cut off")
    initialise: Literal["none", "teacher"] = Field(
        default="none", description="teacher: tokens, embeddings and, where they fit, layers come from a teacher's"
    )
    widths: tuple[Annotated[int, Field(ge=2, le=4096)], ...] = Field(
        default=(128,), description="hidden units per layer; []: logits are linear in the text's vector"
    )
    bins: int = Field(default=12, ge=2, le=256, description="quantile bins of the numbers' piecewise-linear encoding")
    embedding: int = Field(default=8, ge=1, le=256, description="largest embedding width of a category")
    dropout: float = Field(default=0.1, ge=0, lt=1)

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
    """A torch module of the user's own, trained from what its factory gives."""

    kind: Literal["module"]
    target: Target = Field(description="'module:factory' (columns, actions, **settings) → torch.nn.Module")
    settings: dict[str, Any] = Field(default_factory=dict, description="further keyword arguments of the factory")


AnyStudent = Annotated[TabularStudent | TextStudent | ModuleStudent, Field(discriminator="kind")]
