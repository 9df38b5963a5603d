"""What a student is pulled towards, one term a module; ``term`` gives the one that an entry of the agent file names."""

from __future__ import annotations

from functools import singledispatch

from torch import Tensor

from stillhouse.config import Decoupled, Hinton, Hints, Relational, Standardised
from stillhouse.distill.losses.decoupled import decoupled_loss
from stillhouse.distill.losses.hinton import knowledge_loss
from stillhouse.distill.losses.hints import hints_loss
from stillhouse.distill.losses.outcomes import outcome_loss
from stillhouse.distill.losses.relational import relational_loss
from stillhouse.distill.losses.signals import Signals, log_knowledge, soften
from stillhouse.distill.losses.standardised import standardised_loss
from stillhouse.errors import ConfigError

__all__ = [
    "Signals",
    "decoupled_loss",
    "hints_loss",
    "knowledge_loss",
    "log_knowledge",
    "outcome_loss",
    "relational_loss",
    "soften",
    "standardised_loss",
    "term",
]


@singledispatch
def term(loss: object, signals: Signals, temperature: float) -> Tensor:
    """One term of the pull of knowledge, a scalar; the type of ``loss`` says which.

    :raises ConfigError: if it needs features and the teacher has none.
    """
    raise TypeError(f"no knowledge loss for {type(loss).__name__}")


@term.register
def _(loss: Hinton, signals: Signals, temperature: float) -> Tensor:
    return knowledge_loss(signals.logits, signals.knowledge, temperature)


@term.register
def _(loss: Decoupled, signals: Signals, temperature: float) -> Tensor:
    return decoupled_loss(signals.logits, signals.knowledge, signals.outcomes, temperature, loss.others)


@term.register
def _(loss: Standardised, signals: Signals, temperature: float) -> Tensor:
    return standardised_loss(signals.logits, signals.knowledge, temperature)


@term.register
def _(loss: Relational, signals: Signals, temperature: float) -> Tensor:
    taught = log_knowledge(signals.knowledge) if signals.features is None else signals.features
    learned = signals.logits if signals.features is None or signals.hidden is None else signals.hidden
    return relational_loss(learned[: loss.rows], taught[: loss.rows], loss.angles)


@term.register
def _(loss: Hints, signals: Signals, temperature: float) -> Tensor:
    if signals.projected is None or signals.features is None:
        raise ConfigError(
            "distillation.losses: `hints` needs a teacher that gives features, and this one gives probabilities alone: "
            "take another loss, such as `relational`"
        )
    return hints_loss(signals.projected, signals.features)
