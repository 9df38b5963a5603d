"""The registry: one agent's runs and models in MLflow. No other package of the engine imports mlflow.

``Registry("flights")`` connects. Importing this package is cheap: MLflow is imported when it connects.
"""

from stillhouse.registry.entries import (
    Lineage,
    NewVariant,
    OpenedRefresh,
    PoolVersion,
    RefusedVariant,
    Role,
    Rollback,
    UnrecordedChampion,
    VersionEntry,
)
from stillhouse.registry.registry import Registry

__all__ = [
    "Lineage",
    "NewVariant",
    "OpenedRefresh",
    "PoolVersion",
    "RefusedVariant",
    "Registry",
    "Role",
    "Rollback",
    "UnrecordedChampion",
    "VersionEntry",
]
