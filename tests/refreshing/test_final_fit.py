"""The final fit of a refresh: trained on the newest rows too, registered, and not yet proved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stillhouse import refresh
from stillhouse.champion import load_version, open_registry
from stillhouse.knowledge import KnowledgeBase
from stillhouse.payoff.scores import scoring_rule
from stillhouse.records import FinalFit, Verdict
from stillhouse.refreshing import final_fit, publishing
from stillhouse.refreshing.session import Session
from stillhouse.registry import Registry, names
from tests.payoff.test_final_fits import blocks


def certificate(verdict: Verdict) -> FinalFit | None:
    registry = open_registry("toy")
    (logged,) = registry.client.search_runs([registry.experiment_id], f"tags.verdict = '{verdict.verdict_id}'")
    return registry.runs.read_record(logged.info.run_id, names.FINAL_FIT, FinalFit)


@pytest.fixture(autouse=True)
def with_final_fits(agents: Path) -> None:
    """The small agent makes final fits."""
    file = agents / "toy.yaml"
    file.write_text(file.read_text().replace("final_fit: never", "final_fit: auto"))


@pytest.fixture
def gained(monkeypatch: pytest.MonkeyPatch) -> Callable[[KnowledgeBase], object]:
    """Stores the scores of a pool in which three earlier final fits ranked the rows better than their challengers."""
    rng, challengers, scores = np.random.default_rng(0), {}, []
    for number in range(3):
        labels = rng.integers(0, 2, 400)
        for member, noise in ((f"toy@{100 + number}", 0.9), (f"toy@{200 + number}", 0.5)):
            probs = np.clip(0.25 + 0.5 * labels + noise * rng.uniform(-0.5, 0.5, 400), 0, 1)
            (block,) = blocks(member, number, [0.5])
            scores.append(
                block.model_copy(update={"rows": 400, "labels": tuple(labels.tolist()), "probs": tuple(probs.tolist())})
            )
        challengers[f"toy@{200 + number}"] = f"toy@{100 + number}"
    registered = Registry.final_fits
    monkeypatch.setattr(
        Registry,
        "final_fits",
        lambda self, refresh_id=None: registered(self, refresh_id) | ({} if refresh_id else challengers),
    )
    return lambda base: base.journal.append_scores(scores, scoring_rule(base.config))


@pytest.mark.slow
def test_final_fit_joins_the_pool_and_is_not_yet_proved(toy_base, day) -> None:
    toy_base(24)
    verdict = refresh("toy", day(24), cause="four days more")
    assert verdict.result == "promoted", verdict.summary
    registry = open_registry("toy")
    champion, fit = registry.champion(), certificate(verdict)
    assert champion is not None and fit is not None
    assert fit.status == "not yet proved" and "not yet proved" in fit.text
    assert not fit.decides and "0 earlier final fits" in fit.text  # nothing has shown that final fits gain
    assert fit.challenger == str(champion)
    assert fit.new_rows == 4 * 120 and fit.shaped_until == registry.baseline(champion).test.end

    (name,) = [name for name, challenger in registry.final_fits().items() if challenger == str(champion)]
    version = registry.version("toy", name.rpartition("@")[2])
    tags = registry.models.tags(version)
    assert (tags["role"], tags["proved"], tags["chosen"]) == ("final_fit", "False", "False")
    assert tags["shaped_until"] == fit.shaped_until.isoformat() and tags["variant"] == fit.variant
    assert "auc" not in tags  # no row is left that could tell
    assert registry.models.signed(version).version == version.version
    assert registry.models.student_files(version) != registry.models.student_files(champion)
    assert refresh("toy", day(24), cause="four days more") == verdict and len(registry.final_fits()) == 2


@pytest.mark.slow
def test_final_fit_has_learned_the_rows_of_the_test_window(toy_base, day) -> None:
    base = toy_base(24)
    verdict = refresh("toy", day(24), cause="four days more")
    registry = open_registry("toy")
    champion, fit = registry.champion(), certificate(verdict)
    rows = base.read_labelled(registry.baseline(champion).test, day(24))
    labels = rows["outcome"].to_numpy()
    names_of = {challenger: name for name, challenger in registry.final_fits().items()}
    proven, newer = (
        load_version("toy", registry.version("toy", name.rpartition("@")[2])).variant.predict_proba(rows)
        for name in (str(champion), names_of[str(champion)])
    )
    losses = [-np.log(probs[np.arange(len(rows)), labels]).mean() for probs in (proven, newer)]
    assert losses[1] < losses[0]
    agreement = next(reason for reason in fit.reasons if reason.measure == "agreement")
    assert agreement.value > 0 and not agreement.failed and "120 current rows without outcomes" in agreement.text


def test_final_fit_becomes_champion_where_earlier_ones_gained(toy_base, day, gained) -> None:
    gained(toy_base(24))
    verdict = refresh("toy", day(24), cause="four days more")
    registry, fit = open_registry("toy"), certificate(verdict)
    assert verdict.result == "promoted" and fit.decides and fit.earlier == 3
    assert str(registry.champion()) in registry.final_fits()
    student = registry.version("toy-student", "champion")
    assert registry.models.tags(student)["role"] == "final_fit"  # the next update goes on from it


@pytest.mark.slow
def test_final_fit_over_budget_or_in_disagreement_does_not_decide(toy_base, day, gained, monkeypatch) -> None:
    gained(toy_base(24))
    monkeypatch.setattr(final_fit, "_MAX_DISAGREEMENT", 0.0)
    verdict = refresh("toy", day(24), cause="four days more")
    fit = certificate(verdict)
    assert verdict.result == "promoted" and not fit.decides
    assert [reason.measure for reason in fit.reasons if reason.failed] == ["agreement"]
    assert str(open_registry("toy").champion()) == fit.challenger


@pytest.mark.slow
def test_no_final_fit_if_the_agent_file_says_never_or_nothing_was_trained(toy_base, day, agents: Path) -> None:
    file = agents / "toy.yaml"
    toy_base(24)
    before = open_registry("toy").final_fits()
    verdict = refresh("toy", day(24), mode="recalibrate", cause="ranges")
    assert verdict.kind == "gate" and certificate(verdict) is None
    file.write_text(file.read_text().replace("final_fit: auto", "final_fit: never"))
    assert certificate(refresh("toy", day(24), cause="never")) is None
    assert open_registry("toy").final_fits() == before


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    "step",
    [pytest.param("_train", marks=pytest.mark.slow), "_register", pytest.param("settle", marks=pytest.mark.slow)],
)
def test_killed_refresh_makes_one_final_fit(toy_base, day, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    toy_base(24)
    before = open_registry("toy").final_fits()
    module, name = (publishing, "settle_refresh") if step == "settle" else (final_fit, step)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, _raise)
        with pytest.raises(KilledError):
            refresh("toy", day(24), cause="killed")
    verdict = refresh("toy", day(24), cause="killed")
    registry = open_registry("toy")
    made = {name: of for name, of in registry.final_fits().items() if name not in before}
    assert verdict.result == "promoted" and list(made.values()) == [str(registry.champion())]
    assert certificate(verdict).challenger == str(registry.champion())


def _raise(session: Session, *_: object) -> None:
    raise KilledError
