"""Other people's models in MLflow, for teachers of kind ``mlflow``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stillhouse.errors import PartError, RegistryError
from stillhouse.registry import Registry
from stillhouse.registry.foreign import ForeignModels


def test_an_alias_becomes_a_version(three: Registry) -> None:
    three.client.set_registered_model_alias("flights", "best", "2")
    models = ForeignModels()
    assert models.pin("models:/flights@best") == "models:/flights/2"
    for pinned in ("models:/flights/2", "models:/m-123", "runs:/abc/model"):
        assert models.pin(pinned) == pinned
    with pytest.raises(RegistryError, match="worst"):
        models.pin("models:/flights@worst")


def test_a_variant_of_another_agent_can_teach(registry: Registry, tmp_path: Path) -> None:
    from tests.registry.conftest import Life

    Life(registry, tmp_path / "work").refresh("r1")
    rows = pd.DataFrame({"wind": [1.0, 9.0], "hour": [3.0, 4.0], "origin": ["EWR", "JFK"]})
    said = ForeignModels().load("models:/flights/1")(rows)
    assert {"p_on_time", "p_late"} <= set(said.columns)
    assert np.allclose(said[["p_on_time", "p_late"]].sum(axis=1), 1, atol=1e-5)


def test_a_model_that_is_not_there(three: Registry) -> None:
    with pytest.raises(PartError, match=r"models:/flights/99 cannot be loaded from MLflow"):
        ForeignModels().load("models:/flights/99")
