"""stillhouse keeps the small model inside an agent fresh.

>>> import stillhouse
>>> sorted(stillhouse.__all__)
['Agent', 'KnowledgeBase', 'Variant', '__version__', 'load_config', 'refresh', 'watch']

``Agent`` decides and records in an application; ``Variant`` is one deployed model; ``KnowledgeBase`` is what an agent
has lived through; ``load_config`` reads an agent file; ``watch`` measures drift and decides; ``refresh`` makes a
challenger and lets the gate decide. Each is imported when it is first used: ``import stillhouse`` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stillhouse.version import __version__

if TYPE_CHECKING:
    from stillhouse.config import load as load_config
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.refreshing.run import refresh
    from stillhouse.runtime import Agent
    from stillhouse.variant import Variant
    from stillhouse.watching.run import watch

__all__ = ["Agent", "KnowledgeBase", "Variant", "__version__", "load_config", "refresh", "watch"]


_FACE = {
    "Agent": ("stillhouse.runtime", "Agent"),
    "KnowledgeBase": ("stillhouse.knowledge", "KnowledgeBase"),
    "Variant": ("stillhouse.variant", "Variant"),
    "load_config": ("stillhouse.config", "load"),
    "refresh": ("stillhouse.refreshing.run", "refresh"),
    "watch": ("stillhouse.watching.run", "watch"),
}


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _FACE[name]
    found = getattr(import_module(module), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
