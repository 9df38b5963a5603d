"""How a student is trained: distillation losses, synthetic rows, optimiser settings, and updates by fine-tuning."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stillhouse.config.base import PositiveDuration, Section

__all__ = [
    "Augment",
    "Decoupled",
    "Distillation",
    "DistillationLoss",
    "Hinton",
    "Hints",
    "LossSection",
    "Relational",
    "Standardised",
    "UpdateSettings",
]


class LossSection(Section):
    """Base of every distillation loss; ``distill/losses/<type>.py`` registers how it is computed."""

    weight: float = Field(
        default=1.0, gt=0, description="share in the distillation loss, relative to the other entries"
    )

    needs_features: ClassVar[bool] = False
    """Whether it compares hidden layers, and so needs a teacher that offers features."""
    min_actions: ClassVar[int] = 2
    """With fewer actions the loss adds nothing to ``hinton``."""


class Hinton(LossSection):
    """KL divergence of the softened probabilities."""

    type: Literal["hinton"]


class Decoupled(LossSection):
    """Decoupled distillation: the probability of the target action, and the distribution over the other actions."""

    min_actions = 3

    type: Literal["decoupled"]
    others: float = Field(
        default=4.0,
        gt=0,
        description="weight of the distribution over the other actions, relative to the target action",
    )


class Standardised(LossSection):
    """KL divergence of logits standardised to mean 0 and standard deviation 1 in each row."""

    min_actions = 3

    type: Literal["standardised"]


class Relational(LossSection):
    """Distances and angles between rows, compared between teacher and student."""

    type: Literal["relational"]
    angles: float = Field(default=2.0, ge=0, description="weight of the angles, relative to the distances")
    rows: int = Field(
        default=64, ge=3, le=512, description="rows of a batch that are compared; the time grows with rows³"
    )


class Hints(LossSection):
    """Squared distance of the student's last hidden layer, projected, to the teacher's features."""

    needs_features = True

    type: Literal["hints"]


DistillationLoss = Annotated[Hinton | Decoupled | Standardised | Relational | Hints, Field(discriminator="type")]


class Augment(Section):
    """Synthetic rows near the observed ones, which the teachers are queried about too."""

    copies: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="synthetic rows per observed row; null: 3 without an endpoint and without a teacher budget, "
        "otherwise 0",
    )
    fill_to: int = Field(
        default=20_000,
        ge=0,
        description="limit of observed and synthetic rows together, above which no synthetic rows are made",
    )
    mix: float = Field(default=0.5, gt=0, le=1, description="probability that a value comes from the nearest row")
    closeness: float = Field(
        default=1.0,
        gt=0,
        description="a number is drawn around that of the nearest row, with standard deviation (difference of the "
        "two) / closeness",
    )
    reworded: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="share of the words removed or replaced in half of the synthetic texts; the others are crossed "
        "with another text",
    )


class Distillation(Section):
    """How the student is trained on teacher probabilities and outcomes.

    What is null here is chosen by :func:`~stillhouse.config.defaults.fit_defaults` from the rows there are.

    >>> from stillhouse.config import Distillation
    >>> [loss.type for loss in Distillation().losses]
    ['hinton']
    """

    controller: Literal["adaptive", "fixed"] = Field(
        default="adaptive",
        description="adaptive: held-out outcomes may change temperature and outcome_weight during training; fixed: "
        "they stay",
    )
    control: bool = Field(
        default=True,
        description="where the controller changed a setting, also train a student at the fixed settings, to log the "
        "difference",
    )
    compare_every: int = Field(
        default=4,
        ge=1,
        le=1000,
        description="a second training for comparison (fixed settings; no synthetic rows) is repeated after this many "
        "refreshes if the last one found no difference; 1: at each refresh",
    )
    losses: tuple[DistillationLoss, ...] = Field(
        default=(Hinton(type="hinton"),), min_length=1, description="losses between student and teacher"
    )
    augment: Augment = Field(default=Augment(), description="synthetic rows near the observed ones")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="epochs without a better held-out loss after which training stops; null: training never stops "
        "early",
    )
    temperature: float = Field(default=2.0, gt=0, le=20, description="softmax temperature of teacher and student")
    outcome_weight: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="weight of a row's outcome; the rest of 1 is the weight of its teacher probabilities; null: chosen "
        "by the number of training rows",
    )
    epochs: int | None = Field(
        default=None, ge=1, le=1000, description="passes over the training rows; null: chosen by their number"
    )
    batch_size: int | None = Field(
        default=None, ge=8, description="rows per step; null: chosen by the number of training rows"
    )
    learning_rate: float | None = Field(
        default=None, gt=0, lt=1, description="peak of the one-cycle schedule; null: chosen by the number of rows"
    )
    weight_decay: float = Field(default=1e-2, ge=0, lt=1)
    averaging: float = Field(
        default=0.995, ge=0, lt=1, description="decay of the moving average of the parameters, per step"
    )
    unknown_rate: float = Field(
        default=0.02, ge=0, lt=1, description="share of category codes and tokens replaced by 'unknown' during training"
    )
    validation_every: int | None = Field(
        default=None,
        ge=2,
        description="every n-th block of the training window is a validation block, used to choose among variants; "
        "null: chosen so that there are eight or more",
    )
    validation_block: PositiveDuration | None = Field(
        default=None,
        description="length of a block, from 1 s; null: a day if `validation_every` is set, else chosen with it",
    )
    folds: int | None = Field(
        default=None,
        ge=2,
        le=20,
        description="blocks of time in the teachers' cross-fitting; null: chosen by the number of training rows",
    )
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check_distinct_losses(self) -> Distillation:
        types = [loss.type for loss in self.losses]
        if duplicates := sorted({repr(name) for name in types if types.count(name) > 1}):
            raise ValueError(f"losses: {', '.join(duplicates)} is given more than once; give it one entry and a weight")
        return self


class UpdateSettings(Section):
    """How a refresh in mode ``update`` fine-tunes the champion's student on new rows."""

    steps: int = Field(default=200, ge=1, le=100_000, description="optimiser steps")
    memory: int = Field(
        default=2000,
        ge=1,
        description="size of the replay buffer: rows trained on earlier, with the student's probabilities",
    )
    least_old_share: float = Field(
        default=0.2, ge=0, le=1, description="smallest weight of the replayed rows in the loss of a step"
    )
    min_rows: int = Field(
        default=200, ge=20, description="fewest new rows with known outcomes; with fewer, the refresh redistils"
    )
