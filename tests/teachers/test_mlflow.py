"""A model from MLflow as a teacher, through a store that is handed in."""

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
from stillhouse.teachers.mlflow import pinned_like
from tests.teachers.test_ensemble import WINDOW, make_config, make_rows


class Store:
    """One registered model whose alias can move; version v says v/10."""

    def __init__(self, champion: int = 3) -> None:
        self.champion = champion
        self.loaded: list[str] = []
        self.given: list[str] = []
        self.form: Callable[[np.ndarray], Any] = lambda said: said

    def pin(self, uri: str) -> str:
        return f"models:/big/{self.champion}" if uri.endswith("@champion") else uri

    def load(self, uri: str) -> Callable[[pd.DataFrame], Any]:
        self.loaded.append(uri)
        share = int(uri.rsplit("/", 1)[1]) / 10

        def predict(rows: pd.DataFrame) -> Any:
            self.given = list(rows.columns)
            return self.form(np.tile([1 - share, share], (len(rows), 1)))

        return predict


def big(uri: str = "models:/big@champion", **settings: Any) -> dict[str, Any]:
    return {"kind": "mlflow", "name": "big", "uri": uri, **settings}


def fitted(folder: Path, store: Store | None, **settings: Any) -> ensemble.Ensemble:
    config = make_config(big(**settings))
    ensemble.fit(config, make_rows(24), WINDOW, folder, store)
    return ensemble.load(folder, config, store)


def test_an_alias_is_pinned_when_the_teacher_is_made(tmp_path: Path) -> None:
    store = Store()
    first = fitted(tmp_path / "t", store)
    np.testing.assert_allclose(first.predict_proba(make_rows(2)), [[0.7, 0.3]] * 2)
    assert store.given == ["temp"]
    store.champion = 4
    again = ensemble.load(tmp_path / "t", make_config(big()), store)
    assert (store.loaded[-1], again.version) == ("models:/big/3", first.version)
    assert fitted(tmp_path / "t2", store).version != first.version


def test_a_stored_teacher_can_name_no_other_model(tmp_path: Path) -> None:
    fitted(tmp_path / "t", Store())
    file = tmp_path / "t" / "teacher.json"
    for evil in ("models:/evil/1", "models:/big/../evil/1", "runs:/x/evil", "/tmp/evil"):
        stored = json.loads(file.read_text())
        stored["parts"][0]["pinned"] = evil
        file.write_text(json.dumps(stored))
        store = Store()
        with pytest.raises(
            PartError, match=r"teachers\.big: the stored teacher has .*, which is not 'models:/big@champ"
        ):
            ensemble.load(tmp_path / "t", make_config(big()), store)
        assert not store.loaded
    assert pinned_like("models:/a/3", "models:/a/3") and not pinned_like("models:/a/3", "models:/a/4")
    assert not pinned_like("models:/a.b@x", "models:/acb/4")


@pytest.mark.parametrize(
    ("form", "answers"),
    [
        (lambda said: pd.DataFrame(said[:, ::-1], columns=["move", "stay"]), "probabilities"),
        (lambda said: pd.DataFrame({"action": "?", "p_move": said[:, 1], "p_stay": said[:, 0]}), "probabilities"),
        (lambda said: said.tolist(), "probabilities"),
        (np.log, "logits"),
    ],
    ids=["named", "p_named", "a list", "logits"],
)
def test_whatever_form_the_answer_has(tmp_path: Path, form: Callable[[np.ndarray], Any], answers: str) -> None:
    store = Store()
    store.form = form
    said = fitted(tmp_path / "t", store, answers=answers).predict_proba(make_rows(2))
    np.testing.assert_allclose(said, [[0.7, 0.3]] * 2)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda said: said[:, 1], r"shape \(2,\), not \(2, 2\)"),
        (lambda said: np.array([["stay", "move"]] * len(said)), "not with numbers"),
        (lambda said: 1 / 0, r"teachers\.big: models:/big/3 fails on 2 rows: ZeroDivisionError"),
    ],
)
def test_an_answer_that_is_none(tmp_path: Path, form: Callable[[np.ndarray], Any], message: str) -> None:
    store = Store()
    store.form = form
    with pytest.raises(PartError, match=message):
        fitted(tmp_path / "t", store).predict_proba(make_rows(2))


def test_without_a_store_it_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"teachers\.big: comes from MLflow and can be asked by the flows only"):
        fitted(tmp_path / "t", None)


# --------------------------------------------------------------------------- several outputs, and trust

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    "form",
    [
        lambda said: {"label": said.argmax(axis=1), "probabilities": said},
        lambda said: {
            "output_label": said.argmax(axis=1),
            "output_probability": [dict(enumerate(row)) for row in said],
        },
        lambda said: {"p": [dict(zip(("move", "stay"), row[::-1], strict=True)) for row in said]},
        lambda said: [np.zeros((len(said), 64)), said],
    ],
    ids=["arrays", "classes by number", "classes by name", "a list"],
)
def test_of_several_outputs_the_one_with_a_value_for_each_action(
    tmp_path: Path, form: Callable[[np.ndarray], Any]
) -> None:
    store = Store()
    store.form = form
    np.testing.assert_allclose(fitted(tmp_path / "t", store).predict_proba(make_rows(2)), [[0.7, 0.3]] * 2)


def test_two_outputs_that_may_be_it_are_told(tmp_path: Path) -> None:
    store = Store()
    store.form = lambda said: {"a": said, "b": said[:, ::-1]}
    with pytest.raises(PartError, match=r"teachers\.big: models:/big/3: it gives \[2, 2\], \[2, 2\], and one output"):
        fitted(tmp_path / "t", store).predict_proba(make_rows(2))


def test_trust_needs_a_version_and_a_digest() -> None:
    with pytest.raises(ValidationError, match=r"models:/big@champion may be another model tomorrow"):
        make_config(big(trusts_code=True, digest=DIGEST))
    with pytest.raises(ValidationError, match=r"needs the `digest` of the files"):
        make_config(big("models:/big/3", trusts_code=True))
    with pytest.raises(ValidationError, match="digest"):
        make_config(big("models:/big/3", digest="md5:abc"))


def test_trust_goes_to_the_store_and_changes_nothing_that_is_known(tmp_path: Path) -> None:
    class Trusting(Store):
        trust: dict[str, Any] = {}  # noqa: RUF012

        def load(self, uri: str, **trust: Any) -> Callable[[pd.DataFrame], Any]:
            Trusting.trust = trust
            return super().load(uri)

    plain = fitted(tmp_path / "t", Store(), uri="models:/big/3")
    config = make_config(big("models:/big/3", trusts_code=True, digest=DIGEST))
    trusted = ensemble.load(tmp_path / "t", config, Trusting())
    assert Trusting.trust == {"digest": DIGEST, "trusts_code": True} and trusted.version == plain.version
