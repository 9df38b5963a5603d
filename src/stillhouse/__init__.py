"""stillhouse keeps the small model inside an agent fresh.

>>> import stillhouse
>>> sorted(stillhouse.__all__)
['Agent', 'KnowledgeBase', 'Variant', '__version__', 'distil', 'load_config', 'refresh', 'watch']

``Agent`` decides and records in an application. ``Variant`` is one deployed model. ``KnowledgeBase`` holds an agent's
observations, decisions, outcomes and teacher probabilities. ``load_config`` reads an agent file. ``watch`` measures
drift and decides on a response; ``refresh`` makes a challenger and lets the gate decide on its promotion. ``distil``
trains and compresses a student from a data frame, without an agent file. Each name is imported when it is first used,
so ``import stillhouse`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stillhouse.version import __version__

if TYPE_CHECKING:
    from stillhouse.config import load as load_config
    from stillhouse.distilling import distil
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.refreshing.run import refresh
    from stillhouse.runtime import Agent
    from stillhouse.variant import Variant
    from stillhouse.watching.run import watch

__all__ = ["Agent", "KnowledgeBase", "Variant", "__version__", "distil", "load_config", "refresh", "watch"]


_PUBLIC_NAMES = {
    "Agent": ("stillhouse.runtime", "Agent"),
    "KnowledgeBase": ("stillhouse.knowledge", "KnowledgeBase"),
    "Variant": ("stillhouse.variant", "Variant"),
    "distil": ("stillhouse.distilling", "distil"),
    "load_config": ("stillhouse.config", "load"),
    "refresh": ("stillhouse.refreshing.run", "refresh"),
    "watch": ("stillhouse.watching.run", "watch"),
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC_NAMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
