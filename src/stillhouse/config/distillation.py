"""How a student learns: losses of knowledge, synthetic rows, the optimiser, updates."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stillhouse.config.base import Section

__all__ = [
    "Augment",
    "Decoupled",
    "Distillation",
    "Hinton",
    "Hints",
    "KnowledgeLoss",
    "LossSection",
    "Relational",
    "Standardised",
    "Update",
]


class LossSection(Section):
    """What every loss of knowledge has; ``distill/losses/<type>.py`` registers its term."""

    weight: float = Field(default=1.0, gt=0, description="share in the pull of knowledge, relative to the others")

    needs_features: ClassVar[bool] = False
    """Whether it compares hidden layers, and so needs a teacher that gives features."""
    min_actions: ClassVar[int] = 2
    """With fewer actions it has nothing to add."""


class Hinton(LossSection):
    """KL divergence of the softened probabilities."""

    type: Literal["hinton"]


class Decoupled(LossSection):
    """Decoupled distillation: what the outcome's action gets, and how the rest is spread over the others."""

    min_actions = 3

    type: Literal["decoupled"]
    others: float = Field(default=4.0, gt=0, description="weight of the other actions' spread against the outcome's")


class Standardised(LossSection):
    """KL divergence of logits brought to mean 0 and standard deviation 1 in each row."""

    min_actions = 3

    type: Literal["standardised"]


class Relational(LossSection):
    """Distances and angles between rows, the teacher's against the student's."""

    type: Literal["relational"]
    angles: float = Field(default=2.0, ge=0, description="weight of the angles against the distances")
    rows: int = Field(default=64, ge=3, le=512, description="rows of a batch that are compared: time grows with rows³")


class Hints(LossSection):
    """The student's last hidden layer, projected, against the teacher's features."""

    needs_features = True

    type: Literal["hints"]


KnowledgeLoss = Annotated[Hinton | Decoupled | Standardised | Relational | Hints, Field(discriminator="type")]


class Augment(Section):
    """Rows made up near the observed ones, about which the teachers are asked too."""

    copies: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="made-up rows per observed one; null: 3 where asking is free (no endpoint, no budget), else 0",
    )
    fill_to: int = Field(default=20_000, ge=0, description="rows, observed and made up, beyond which none are made up")
    mix: float = Field(default=0.5, gt=0, le=1, description="probability that a value is taken from the nearest row")
    closeness: float = Field(
        default=1.0, gt=0, description="a number is drawn around the nearest row's, at (their difference) / closeness"
    )
    reworded: float = Field(
        default=0.2, gt=0, le=1, description="share of the words changed, in half of the texts; the others are crossed"
    )


class Distillation(Section):
    """How the student learns from knowledge and outcomes."""

    controller: Literal["adaptive", "fixed"] = Field(
        default="adaptive", description="adaptive: temperature and outcome_weight are where it begins; fixed: they stay"
    )
    control: bool = Field(
        default=True, description="train a student at the fixed settings too, to show what adapting has earned"
    )
    compare_every: int = Field(
        default=4,
        ge=1,
        le=1000,
        description="refreshes from one comparison with a second training (fixed settings; observed rows alone) to the "
        "next, where the last one told of no difference; 1: at each",
    )
    losses: tuple[KnowledgeLoss, ...] = Field(
        default=(Hinton(type="hinton"),), min_length=1, description="what pulls the student towards the teacher"
    )
    augment: Augment = Field(default=Augment(), description="rows made up for the teachers to speak about")
    patience: int | None = Field(
        default=None, ge=1, description="epochs without a better held-out loss until the training stops; null: never"
    )
    temperature: float = Field(default=2.0, gt=0, le=20, description="softens teacher and student alike")
    outcome_weight: float = Field(
        default=0.3, ge=0, le=1, description="of a row's outcome; 1 − it goes to its knowledge"
    )
    epochs: int = Field(default=8, ge=1, le=1000)
    batch_size: int = Field(default=1024, ge=8)
    learning_rate: float = Field(default=4e-3, gt=0, lt=1)
    weight_decay: float = Field(default=1e-2, ge=0, lt=1)
    averaging: float = Field(
        default=0.995, ge=0, lt=1, description="decay of the moving average of the weights, per step"
    )
    unknown_rate: float = Field(
        default=0.02, ge=0, lt=1, description="share of category codes and tokens hidden while learning"
    )
    validation_every: int = Field(
        default=10, ge=2, description="every n-th day of the training window is kept to choose among variants"
    )
    folds: int = Field(default=4, ge=2, le=20, description="time blocks of the teacher's cross-fitting")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _each_loss_once(self) -> Distillation:
        types = [loss.type for loss in self.losses]
        if twice := sorted({repr(name) for name in types if types.count(name) > 1}):
            raise ValueError(f"losses: {', '.join(twice)} comes more than once; give it one entry and a weight")
        return self


class Update(Section):
    """How a champion's student takes in what is new, instead of a new student."""

    steps: int = Field(default=200, ge=1, le=100_000, description="of the optimiser")
    memory: int = Field(default=2000, ge=1, description="rows ever learned that are kept with what the student said")
    least_old_share: float = Field(default=0.2, ge=0, le=1, description="what the memory counts at least in each step")
    min_rows: int = Field(default=200, ge=20, description="new rows with knowledge; fewer: the refresh redistils")
