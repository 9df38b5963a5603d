"""An agent without outcomes: the defaults that it has instead of the usual ones, and what it cannot have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from stillhouse.config.teachers import leaves

if TYPE_CHECKING:
    from stillhouse.config.agent import AgentConfig

__all__ = ["fill_defaults", "label_errors"]

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "quality": {"measure": "agreement"},
    "weights": {"follow": "fixed"},  # nothing says which of several teachers is right
    "asking": {"without_outcomes": False},  # a row that the champion decided was not asked about, to save that
    "distillation": {"controller": "fixed", "outcome_weight": 0.0},  # a label has no more to say than its teacher
}
_COPIES = 0.0  # the recorded answers are what there is to learn from: each synthetic row would be a new question


def fill_defaults(sections: dict[str, Any]) -> dict[str, Any]:
    """The sections of an agent file with what an agent without outcomes has by default; written keys stay.

    >>> fill_defaults({"outcomes": None, "asking": {"share": 0.5}})["asking"]
    {'without_outcomes': False, 'share': 0.5}
    >>> fill_defaults({"outcomes": {"source": "toy:outcomes", "delay": "1d"}})
    {'outcomes': {'source': 'toy:outcomes', 'delay': '1d'}}
    """
    if sections.get("outcomes") is not None:
        return sections
    filled = dict(sections)
    for name, defaults in _DEFAULTS.items():
        _fill(filled, name, defaults)
    distillation = filled["distillation"]
    if isinstance(distillation, Mapping):
        filled["distillation"] = dict(distillation)
        _fill(filled["distillation"], "augment", {"copies": _COPIES})
    return filled


def label_errors(config: AgentConfig) -> Iterator[str]:
    """``key: error`` for what makes no sense without outcomes, and for a source without a beginning."""
    if config.observations.source is not None and config.observations.since is None:
        yield "observations.since: is required with `source`: the first moment for which it has rows"
    measure = config.quality.measure
    if config.outcomes is not None:
        if measure == "agreement":
            yield "quality.measure: 'agreement' is for agents without outcomes; this one has some: take 'accuracy'"
        return
    if measure == "accuracy":
        yield "quality.measure: 'accuracy' needs outcomes, and the agent has none: take 'agreement'"
    for index, teacher in enumerate(config.teachers):
        fitted = [leaf.name for leaf in leaves((teacher,)) if leaf.teacher.is_fitted]
        if fitted:
            yield (
                f"teachers.{index}: {fitted[0]!r} is fitted on outcomes, and the agent has none: write "
                "`learns: false` for rules or a finished model, or add the section `outcomes`"
            )
    if config.distillation.outcome_weight:
        yield (
            f"distillation.outcome_weight: is {config.distillation.outcome_weight:g}, and the agent has no outcomes: "
            "leave it out, or add the section `outcomes`"
        )
    if config.distillation.controller != "fixed":
        yield (
            "distillation.controller: 'adaptive' weighs teacher against outcomes, and the agent has none: leave it "
            "out, or add the section `outcomes`"
        )
    if config.weights.follow != "fixed":
        yield (
            "weights.follow: the weights of teachers are estimated from outcomes, and the agent has none: leave it "
            "out, or add the section `outcomes`"
        )


def _fill(sections: dict[str, Any], name: str, defaults: Mapping[str, Any]) -> None:
    """Set keys of a section that are not written; what is no mapping stays, for pydantic to refuse."""
    written = sections.get(name)
    if written is None or isinstance(written, Mapping):
        sections[name] = {**defaults, **(written or {})}
