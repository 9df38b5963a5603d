"""A model from MLflow as a teacher, loaded by a model store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from stillhouse.errors import PartError
from stillhouse.teachers import ensemble
from stillhouse.teachers.mlflow import is_version_of
from tests.teachers.test_ensemble import WINDOW, make_config, make_rows


class ToyStore:
    """One registered model whose alias can move; version v gives probability v/10."""

    def __init__(self, champion: int = 3) -> None:
        self.champion = champion
        self.loaded: list[str] = []
        self.input_columns: list[str] = []
        self.make_output: Callable[[np.ndarray], Any] = lambda probs: probs

    def pin(self, uri: str) -> str:
        return f"models:/big/{self.champion}" if uri.endswith("@champion") else uri

    def load(self, uri: str) -> Callable[[pd.DataFrame], Any]:
        self.loaded.append(uri)
        share = int(uri.rsplit("/", 1)[1]) / 10

        def predict(rows: pd.DataFrame) -> Any:
            self.input_columns = list(rows.columns)
            return self.make_output(np.tile([1 - share, share], (len(rows), 1)))

        return predict


def mlflow_section(uri: str = "models:/big@champion", **settings: Any) -> dict[str, Any]:
    return {"kind": "mlflow", "name": "big", "uri": uri, **settings}


def fit_and_load(folder: Path, store: ToyStore | None, **settings: Any) -> ensemble.Ensemble:
    config = make_config(mlflow_section(**settings))
    ensemble.fit(config, make_rows(24), WINDOW, folder, store)
    return ensemble.load(folder, config, store)


def test_alias_is_pinned_by_fit(tmp_path: Path) -> None:
    store = ToyStore()
    first = fit_and_load(tmp_path / "t", store)
    np.testing.assert_allclose(first.predict_proba(make_rows(2)), [[0.7, 0.3]] * 2)
    assert store.input_columns == ["temp"]
    store.champion = 4
    again = ensemble.load(tmp_path / "t", make_config(mlflow_section()), store)
    assert (store.loaded[-1], again.version) == ("models:/big/3", first.version)
    assert fit_and_load(tmp_path / "t2", store).version != first.version


def test_stored_teacher_cannot_name_another_model(tmp_path: Path) -> None:
    fit_and_load(tmp_path / "t", ToyStore())
    file = tmp_path / "t" / "teacher.json"
    for evil in ("models:/evil/1", "models:/big/../evil/1", "runs:/x/evil", "/tmp/evil"):
        stored = json.loads(file.read_text())
        stored["parts"][0]["pinned"] = evil
        file.write_text(json.dumps(stored))
        store = ToyStore()
        with pytest.raises(
            PartError, match=r"teachers\.big: the stored teacher has .*, which is not 'models:/big@champ"
        ):
            ensemble.load(tmp_path / "t", make_config(mlflow_section()), store)
        assert not store.loaded
    assert is_version_of("models:/a/3", "models:/a/3") and not is_version_of("models:/a/3", "models:/a/4")
    assert not is_version_of("models:/a.b@x", "models:/acb/4")


@pytest.mark.parametrize(
    ("make_output", "answers"),
    [
        (lambda probs: pd.DataFrame(probs[:, ::-1], columns=["move", "stay"]), "probabilities"),
        (lambda probs: pd.DataFrame({"action": "?", "p_move": probs[:, 1], "p_stay": probs[:, 0]}), "probabilities"),
        (lambda probs: probs.tolist(), "probabilities"),
        (np.log, "logits"),
    ],
    ids=["named", "p_named", "a list", "logits"],
)
def test_output_forms_are_accepted(tmp_path: Path, make_output: Callable[[np.ndarray], Any], answers: str) -> None:
    store = ToyStore()
    store.make_output = make_output
    probs = fit_and_load(tmp_path / "t", store, answers=answers).predict_proba(make_rows(2))
    np.testing.assert_allclose(probs, [[0.7, 0.3]] * 2)


@pytest.mark.parametrize(
    ("make_output", "message"),
    [
        (lambda probs: probs[:, 1], r"shape \(2,\), not \(2, 2\)"),
        (lambda probs: np.array([["stay", "move"]] * len(probs)), "not with numbers"),
        (lambda probs: 1 / 0, r"teachers\.big: models:/big/3 fails on 2 rows: ZeroDivisionError"),
    ],
)
def test_invalid_answer_raises(tmp_path: Path, make_output: Callable[[np.ndarray], Any], message: str) -> None:
    store = ToyStore()
    store.make_output = make_output
    with pytest.raises(PartError, match=message):
        fit_and_load(tmp_path / "t", store).predict_proba(make_rows(2))


def test_mlflow_teacher_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"teachers\.big: comes from MLflow and can be asked by the flows only"):
        fit_and_load(tmp_path / "t", None)


# --------------------------------------------------------------------------- several outputs, and trust

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    "make_output",
    [
        lambda probs: {"label": probs.argmax(axis=1), "probabilities": probs},
        lambda probs: {
            "output_label": probs.argmax(axis=1),
            "output_probability": [dict(enumerate(row)) for row in probs],
        },
        lambda probs: {"p": [dict(zip(("move", "stay"), row[::-1], strict=True)) for row in probs]},
        lambda probs: [np.zeros((len(probs), 64)), probs],
    ],
    ids=["arrays", "classes by number", "classes by name", "a list"],
)
def test_output_with_a_value_per_action_is_picked(tmp_path: Path, make_output: Callable[[np.ndarray], Any]) -> None:
    store = ToyStore()
    store.make_output = make_output
    np.testing.assert_allclose(fit_and_load(tmp_path / "t", store).predict_proba(make_rows(2)), [[0.7, 0.3]] * 2)


def test_ambiguous_outputs_raise(tmp_path: Path) -> None:
    store = ToyStore()
    store.make_output = lambda probs: {"a": probs, "b": probs[:, ::-1]}
    with pytest.raises(PartError, match=r"teachers\.big: models:/big/3: it gives \[2, 2\], \[2, 2\], and one output"):
        fit_and_load(tmp_path / "t", store).predict_proba(make_rows(2))


def test_trusts_code_needs_a_version_and_digest() -> None:
    with pytest.raises(ValidationError, match=r"models:/big@champion can change: name a version"):
        make_config(mlflow_section(trusts_code=True, digest=DIGEST))
    with pytest.raises(ValidationError, match=r"needs the `digest` of the reviewed files"):
        make_config(mlflow_section("models:/big/3", trusts_code=True))
    with pytest.raises(ValidationError, match="digest"):
        make_config(mlflow_section("models:/big/3", digest="md5:abc"))


def test_trust_reaches_the_store_and_keeps_the_version(tmp_path: Path) -> None:
    class TrustRecordingStore(ToyStore):
        trust: dict[str, Any] = {}  # noqa: RUF012

        def load(self, uri: str, **trust: Any) -> Callable[[pd.DataFrame], Any]:
            TrustRecordingStore.trust = trust
            return super().load(uri)

    plain = fit_and_load(tmp_path / "t", ToyStore(), uri="models:/big/3")
    config = make_config(mlflow_section("models:/big/3", trusts_code=True, digest=DIGEST))
    trusted = ensemble.load(tmp_path / "t", config, TrustRecordingStore())
    assert TrustRecordingStore.trust == {"digest": DIGEST, "trusts_code": True} and trusted.version == plain.version
