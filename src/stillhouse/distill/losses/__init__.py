"""Losses of a student, one module each; ``loss_term`` computes the one that an entry of the agent file names."""

from __future__ import annotations

from stillhouse.distill.losses.decoupled import decoupled_loss
from stillhouse.distill.losses.hinton import hinton_loss
from stillhouse.distill.losses.hints import hints_loss
from stillhouse.distill.losses.inputs import LossInputs, logits_from_probs, soften
from stillhouse.distill.losses.labels import label_loss
from stillhouse.distill.losses.relational import relational_loss
from stillhouse.distill.losses.standardised import standardised_loss
from stillhouse.distill.losses.terms import loss_term

__all__ = [
    "LossInputs",
    "decoupled_loss",
    "hinton_loss",
    "hints_loss",
    "label_loss",
    "logits_from_probs",
    "loss_term",
    "relational_loss",
    "soften",
    "standardised_loss",
]
