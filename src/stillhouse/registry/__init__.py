"""The registry: one agent's experiment and models in MLflow. No other room of the engine imports mlflow.

``Registry("flights")`` connects. Importing this package costs next to nothing: MLflow is imported on connecting.
"""

from stillhouse.registry.entries import Lineage, NewVariant, OpenedRefresh, RefusedVariant, Role, VersionEntry
from stillhouse.registry.registry import Registry

__all__ = ["Lineage", "NewVariant", "OpenedRefresh", "RefusedVariant", "Registry", "Role", "VersionEntry"]
