"""The flows of the loop (bootstrap, watch, refresh, promotion, rollback), and their errors on bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prefect.client.orchestration import get_client

from flows.promote import promote
from flows.refresh import refresh
from flows.watch import watch
from stillhouse.champion import open_registry
from stillhouse.config import home, load
from stillhouse.errors import ConfigError, DataError, PartError, RegistryError, SchemaError, WindowError
from stillhouse.evaluate.gate import replay
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Certificate
from stillhouse.refreshing.proving import load_yardsticks
from stillhouse.refreshing.session import Session, open_session, request_refresh
from tasks import events, refreshing
from tasks.ingesting import live
from tests.flows import toy

pytestmark = pytest.mark.usefixtures("prefect_server")


def refresh_session(as_of) -> Session:
    """Open the session of a refresh at that time."""
    return open_session(request_refresh("toy", as_of, "manual", "a question", "fit", "redistil"))


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the events about gates and promotions."""
    names: list[str] = []
    monkeypatch.setattr(events, "emit_event", lambda event, **_: names.append(event))
    return names


def artifacts() -> dict[str, str]:
    with get_client(sync_client=True) as client:
        by_age = sorted(client.read_artifacts(), key=lambda artifact: artifact.created)
    return {artifact.key: artifact.data for artifact in by_age}


@pytest.mark.usefixtures("more_recipes")
def test_drift_is_detected_and_a_new_champion_promoted(day) -> None:
    live.fn("toy", day(0), day(20))
    refresh(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    live.fn("toy", day(20), day(24))
    base = KnowledgeBase(load("toy"))
    calm = watch(agent="toy", as_of=day(24))
    assert (calm.result, calm.response) == ("no_drift", "hold")

    live.fn("toy", day(24), day(32))
    first = open_registry("toy").champion()
    verdict = watch(agent="toy", as_of=day(32), on_drift="refresh")
    assert (verdict.result, verdict.response) == ("teacher_failing", "renew")
    failed = {reason.measure for reason in verdict.reasons if reason.failed}
    assert {"psi", "auc_drop", "evidence_student_outcomes"} <= failed

    gate = base.journal.verdicts()[-1]
    assert gate.kind == "gate" and gate.result == "promoted", gate.summary
    assert replay(gate) == gate
    champion = open_registry("toy").champion()
    assert champion != first and open_registry("toy").previous() == first
    assert open_registry("toy").baseline(champion).test.end == day(31)
    assert open_registry("toy").models.tags(champion)["lineage.drift"] == verdict.verdict_id

    registry, run = open_registry("toy"), open_registry("toy").models.tags(champion)["refresh_run"]
    certificate = registry.runs.read_record(run, "certificate.json", Certificate)
    assert (certificate.rule, certificate.anchor) == (3, str(first))
    yardsticks = load_yardsticks(refresh_session(day(33)))
    assert yardsticks.anchor is None  # a champion that was proven better is its own anchor
    assert yardsticks.never_refreshed.name == str(first) and yardsticks.earlier == ()
    equal = tuple(c.model_copy(update={"difference": 0.0}) for c in certificate.comparisons)
    registry.runs.log_record(run, certificate.model_copy(update={"comparisons": equal}), "certificate.json")
    yardsticks = load_yardsticks(refresh_session(day(33)))
    assert (yardsticks.anchor.name, yardsticks.never_refreshed) == (str(first), None)

    shown = artifacts()
    assert "data:image/png" in shown["timeline-toy"] and registry.runs.read_file(run, "figures/timeline.png")
    assert "teacher failing" in shown["watch-toy"]
    assert f"{champion} is champion since " in shown["champion-toy"] and "| What changed? | [" in shown["champion-toy"]
    assert "| a |" in shown["watch-toy"] and "int8" in shown["refresh-toy"] and "units50" in shown["refresh-toy"]


def test_decisions_are_made_by_the_champion_of_their_time(toy_base, day) -> None:
    base = toy_base(21)
    live.fn("toy", day(21), day(22))
    decisions = base.read("decisions")
    assert len(decisions) == 2 * toy.PER_DAY
    assert set(decisions["version"]) == {str(open_registry("toy").champion())}
    assert np.allclose([sum(p) for p in decisions["probabilities"]], 1.0, atol=1e-5)
    again = live.fn("toy", day(21), day(22))
    assert again == 0 and len(base.read("decisions")) == len(decisions)


def test_identical_refresh_runs_once(toy_base, day) -> None:
    toy_base()
    versions = open_registry("toy").versions()
    again = refresh(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    assert again.result == "promoted"
    assert open_registry("toy").versions() == versions


SLOW = pytest.mark.slow  # similar to the other two steps


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    ["gather_knowledge", "log_models", *(pytest.param(step, marks=SLOW) for step in ("compress", "judge", "settle"))],
)
def test_interrupted_refresh_continues(day, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The process ends right after a step; the next run completes the refresh and repeats no question."""
    live.fn("toy", day(0), day(20))
    task = getattr(refreshing, step)

    def work_and_die(*args, **kwargs):
        task.fn(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(refreshing, step, work_and_die)
        with pytest.raises(KeyboardInterrupt):
            refresh(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")

    base = KnowledgeBase(load("toy"))
    verdict = refresh(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    assert verdict.result == "promoted"
    answers = base.read("knowledge", columns=["content_key", "teacher"])
    assert answers["teacher"].nunique() == 1 and not answers.duplicated().any()  # no question was asked twice
    assert [v.verdict_id for v in base.journal.verdicts()] == [verdict.verdict_id]
    registry = open_registry("toy")
    champion = registry.champion()
    assert registry.models.tags(champion)["variant"] == verdict.evidence["certificate"]["challenger"]["model"]
    runs = registry.client.search_runs([registry.experiment_id], "tags.role = 'refresh'")
    statuses = [run.info.status for run in runs]
    assert statuses.count("FINISHED") == 1 and "RUNNING" not in statuses
    assert not (home() / "refreshes" / "toy" / registry.models.tags(champion)["refresh_id"]).exists()


@pytest.mark.slow
def test_kept_teacher_labels_only_new_rows(toy_base, day) -> None:
    base = toy_base(24)
    before = base.tables.count_rows()["knowledge"]
    verdict = refresh(agent="toy", as_of=day(24), teacher="keep", cause="new rows, same teacher")
    assert verdict.kind == "gate"
    versions = set(base.read("knowledge")["teacher"])
    assert len(versions) == 1
    assert base.tables.count_rows()["knowledge"] > before
    assert (
        len(
            {
                open_registry("toy").models.tags(open_registry("toy").version("toy", v.version))["lineage.teacher"]
                for v in open_registry("toy").versions()
            }
        )
        == 1
    )


@pytest.mark.slow
def test_promotion_and_rollback_by_hand(final_fit, toy_base) -> None:
    base = toy_base()
    champion = open_registry("toy").champion()
    other = next(v.version for v in open_registry("toy").versions() if v.version != champion.version)
    assert promote(agent="toy", version=int(other), reason="smaller").result == "promoted"
    assert open_registry("toy").champion().version == other and open_registry("toy").previous() == champion
    assert promote(agent="toy", action="rollback", reason="it was worse").result == "rolled_back"
    assert open_registry("toy").champion() == champion
    assert [v.result for v in base.journal.verdicts() if v.kind == "promotion"] == ["promoted", "rolled_back"]
    with pytest.raises(RegistryError, match="no version '99'"):
        promote(agent="toy", version=99)
    with pytest.raises(RegistryError, match=rf"waits for approval. Which version\? Give `version`: .*{other} \("):
        promote(agent="toy")
    assert open_registry("toy").champion() == champion


@pytest.mark.slow
def test_refused_challenger_keeps_the_champion(toy_base, day, agents: Path) -> None:
    toy_base(24)
    champion = open_registry("toy").champion()
    text = (agents / "toy.yaml").read_text()
    (agents / "toy.yaml").write_text(text.replace("max_bytes: 100_000", "max_bytes: 100"))
    verdict = refresh(agent="toy", as_of=day(24), cause="a budget that nothing fits")
    assert verdict.result == "refused" and "it would take a max_bytes of" in verdict.summary
    assert any("budget of 100" in reason.text for reason in verdict.reasons if reason.failed)
    assert open_registry("toy").champion() == champion


def test_a_person_decides_about_the_waiting_challenger(final_fit, day, agents: Path, announced: list[str]) -> None:
    text = (agents / "toy.yaml").read_text()
    (agents / "toy.yaml").write_text(text.replace("promotion: {", "promotion: {approval: manual, "))
    live.fn("toy", day(0), day(20))
    verdict = refresh(agent="toy", as_of=day(20), trigger="bootstrap")
    assert verdict.result == "awaiting_approval" and open_registry("toy").champion() is None
    challenger = open_registry("toy").challenger()
    page = artifacts()["refresh-toy"]
    assert page.index("## Approve or reject") < page.index("## Reasons") and f"**{challenger}** passed" in page
    assert (
        f"promote --agent toy --version {challenger.version} --action approve" in page and "/deployments/" not in page
    )
    rejected = promote(agent="toy", action="reject", reason="not yet", by="ada")
    assert rejected.result == "rejected" and open_registry("toy").challenger() is None
    with pytest.raises(RegistryError, match="no version of agent 'toy' waits for approval"):
        promote(agent="toy")
    open_registry("toy").promote(challenger.version)
    assert open_registry("toy").champion() == challenger

    other = next(v.version for v in open_registry("toy").versions() if v.version != challenger.version)
    open_registry("toy").propose(other)
    assert promote(agent="toy", by="ada").summary.endswith("approved by ada: asked for by hand")
    assert open_registry("toy").champion().version == other and open_registry("toy").challenger() is None
    assert announced == ["stillhouse.awaiting_approval", "stillhouse.rejected", "stillhouse.promoted"]


@pytest.mark.slow
def test_a_watch_records_a_champion_that_was_moved_by_hand(final_fit, toy_base, day, announced: list[str]) -> None:
    base, registry = toy_base(24), open_registry("toy")
    champion = registry.champion()
    other = next(v.version for v in registry.versions() if v.version != champion.version)
    registry.client.set_registered_model_alias("toy", "champion", other)
    watch(agent="toy", as_of=day(24))
    (moved,) = base.journal.verdicts("promotion")
    assert (moved.result, moved.reasons[0].text, moved.as_of) == ("promoted", "moved in MLflow by hand", day(24))
    assert registry.previous() == champion and announced == ["stillhouse.promoted"]
    assert "moved in MLflow by hand (since " in artifacts()["champion-toy"]
    watch(agent="toy", as_of=day(24))
    assert base.journal.verdicts("promotion") == [moved]
    assert promote(agent="toy", action="rollback").result == "rolled_back" and registry.champion() == champion


# --------------------------------------------------------------------------- bad input


def alter_observations(monkeypatch: pytest.MonkeyPatch, change) -> None:
    """Change the observations that the toy's source returns."""
    sound = toy.observations
    monkeypatch.setattr(toy, "observations", lambda start, end: change(sound(start, end)))


def test_a_missing_column_is_refused_and_nothing_is_stored(day, monkeypatch) -> None:
    live.fn("toy", day(0), day(22))
    base = KnowledgeBase(load("toy"))
    before = base.tables.count_rows()
    alter_observations(monkeypatch, lambda rows: rows.drop(columns="b"))
    with pytest.raises(SchemaError, match=r"lack the columns \['b'\].*agent file"):
        live.fn("toy", day(22), day(23))
    assert base.tables.count_rows() == before


def test_a_wrong_type_is_refused_and_nothing_is_stored(day, monkeypatch) -> None:
    live.fn("toy", day(0), day(22))
    base = KnowledgeBase(load("toy"))
    before = base.tables.count_rows()
    alter_observations(monkeypatch, lambda rows: rows.assign(a="high"))
    with pytest.raises(SchemaError, match="column 'a'"):
        live.fn("toy", day(22), day(23))
    assert base.tables.count_rows() == before


def test_extra_columns_are_not_stored(day, monkeypatch) -> None:
    alter_observations(monkeypatch, lambda rows: rows.assign(surprise=1))
    live.fn("toy", day(0), day(2))
    base = KnowledgeBase(load("toy"))
    assert "surprise" not in base.read("observations").columns


def test_bad_rows_are_quarantined_and_the_others_watched(toy_base, day, monkeypatch) -> None:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        rows = rows.copy()
        rows.loc[0, "a"] = np.nan
        rows.loc[1, "b"] = 1e6
        rows.loc[2, "place"] = "moon"
        return rows

    base = toy_base(22)
    with monkeypatch.context() as patch:
        alter_observations(patch, change)
        live.fn("toy", day(22), day(23))
    live.fn("toy", day(23), day(24))
    verdict = watch(agent="toy", as_of=day(24))
    assert verdict.result == "no_drift"
    reasons = base.read("quarantine").set_index("observation_id")["reasons"].map(list).to_dict()
    assert len(reasons) == 3
    assert any("a" in r[0] for r in reasons.values()) and any("place" in r[0] for r in reasons.values())
    window = base.window("w", day(22), day(23))
    assert len(base.read_observations(window)) == toy.PER_DAY - 3


def test_broken_window_refuses_watch_and_refresh(toy_base, day, monkeypatch) -> None:
    base = toy_base(22)
    alter_observations(monkeypatch, lambda rows: rows.assign(place="moon"))
    live.fn("toy", day(22), day(26))
    versions = open_registry("toy").versions()
    verdict = watch(agent="toy", as_of=day(26), on_drift="refresh")
    assert (verdict.result, verdict.response) == ("data_broken", "hold")
    assert "place" in verdict.summary
    with pytest.raises(DataError, match=r"breaks the data contract.*place"):
        refresh(agent="toy", as_of=day(26))
    assert open_registry("toy").versions() == versions
    assert base.journal.verdicts()[-1] == verdict


def test_empty_and_small_windows_start_no_refresh(day) -> None:
    live.fn("toy", day(0), day(20))
    empty = watch(agent="toy", as_of=day(40))
    assert empty.result == "data_broken" and "no rows" in empty.summary
    live.fn("toy", day(50), day(50) + pd.Timedelta(hours=12))
    tiny = watch(agent="toy", as_of=day(50) + pd.Timedelta(hours=12))
    assert tiny.result == "not_enough_evidence" and tiny.response == "hold"
    with pytest.raises(WindowError, match="has 0 rows with known outcomes, and 500 are needed: wait for more"):
        refresh(agent="toy", as_of=day(50))
    with pytest.raises(WindowError, match=r"train .* has \d+ rows .* 500 are needed: .*windows\.train"):
        refresh(agent="toy", as_of=day(8))


def test_agent_without_observations_is_refused(day) -> None:
    with pytest.raises(WindowError, match="has no observations"):
        watch(agent="toy")


def test_unknown_agent_and_path_as_name_are_refused(day) -> None:
    with pytest.raises(ConfigError, match="did you mean 'toy'"):
        watch(agent="toyy")
    with pytest.raises(Exception, match="agent"):
        watch(agent="../toy")


def test_missing_teacher_class_is_refused(day, agents: Path) -> None:
    text = (agents / "toy.yaml").read_text()
    (agents / "toy.yaml").write_text(text.replace("tests.flows.toy:Logistic", "tests.flows.toy:Logistics"))
    live.fn("toy", day(0), day(20))
    with pytest.raises(PartError, match="Logistics"):
        refresh(agent="toy", as_of=day(20), trigger="bootstrap")
    assert open_registry("toy").versions() == []


def test_unreachable_mlflow_is_refused(day, monkeypatch) -> None:
    live.fn("toy", day(0), day(20))
    base = KnowledgeBase(load("toy"))
    before = base.tables.count_rows()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:9"):
        refresh(agent="toy", as_of=day(20))
    assert base.tables.count_rows() == before
