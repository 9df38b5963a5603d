"""What a student is pulled towards, one term a module; ``term`` gives the one that an entry of the agent file names."""

from __future__ import annotations

from stillhouse.distill.losses.decoupled import decoupled_loss
from stillhouse.distill.losses.hinton import knowledge_loss
from stillhouse.distill.losses.hints import hints_loss
from stillhouse.distill.losses.outcomes import outcome_loss
from stillhouse.distill.losses.relational import relational_loss
from stillhouse.distill.losses.signals import Signals, log_knowledge, soften
from stillhouse.distill.losses.standardised import standardised_loss
from stillhouse.distill.losses.terms import term

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
