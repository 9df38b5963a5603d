"""Promotion by people, by the pool and by hand in MLflow: aliases, verdicts, and states after a kill at any write."""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from stillhouse import config, promoting
from stillhouse.commands.status import status
from stillhouse.errors import RegistryError, SignatureError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.tables import Tables
from stillhouse.knowledge.windows import promoted_at
from stillhouse.locks import refresh_lock
from stillhouse.records import Reason, Verdict
from stillhouse.registry import Registry
from tests.registry.conftest import AGENT_FILE, empty_store, home, store_of_three, three

__all__ = ["empty_store", "home", "store_of_three", "three"]

WORSE = [Reason(measure="pool", value=0.02, threshold=0.01, failed=True, text="its accuracy is 2 points lower")]
BETTER = [Reason(measure="pool", value=0.02, threshold=0.01, failed=True, text="its accuracy is 2 points higher")]
POOL = {"champion": "flights@2", "evidence": [{"log_better": 3.2}]}
NOON = datetime(2013, 2, 1, 12, tzinfo=UTC)


class Killed(BaseException):
    """Stands for the process's death: nothing may catch it."""


@pytest.fixture
def registry(three: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Versions 1 to 3, of which 1 and then 2 were promoted; an agent file and an empty knowledge base."""
    write_agent(tmp_path, monkeypatch)
    three.promote("1")
    three.promote("2")
    return three


def write_agent(folder: Path, monkeypatch: pytest.MonkeyPatch, more: str = "") -> None:
    (folder / "agents").mkdir(exist_ok=True)
    (folder / "agents" / "flights.yaml").write_text(AGENT_FILE + more)
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(folder / "agents"))


@pytest.fixture
def manual(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    write_agent(tmp_path, monkeypatch, "promotion: {approval: manual}\n")
    return registry


def aliases(registry: Registry, name: str = "flights") -> dict[str, str]:
    versions = registry.client.get_registered_model(name).aliases
    return {alias: str(version) for alias, version in versions.items()}


def verdicts() -> list[Verdict]:
    return KnowledgeBase(config.load("flights")).journal.verdicts("promotion")


def move_by_hand(registry: Registry, version: str) -> None:
    """What a person does on MLflow's page of a model."""
    registry.client.set_registered_model_alias("flights", "champion", version)


# --------------------------------------------------------------------------- approval


def test_promote_without_a_version_takes_the_waiting_challenger(registry: Registry) -> None:
    registry.propose("3")
    verdict = promoting.promote_version("flights", None, by="ada")
    assert (verdict.kind, verdict.result) == ("promotion", "promoted")
    assert verdict.summary == "flights@3 is champion instead of flights@2: approved by ada: asked for by hand"
    assert verdict.evidence == {"champion": "flights@3", "before": "flights@2", "by": "ada"}
    assert aliases(registry) == {"champion": "3", "previous": "2"} and verdicts() == [verdict]


def test_with_no_waiting_challenger_the_versions_are_listed(registry: Registry) -> None:
    sentence = "no version of agent 'flights' waits for approval. Which version? Give `version`: 3 (fp32), 1 (fp32)"
    for call in (promoting.approve, lambda agent: promoting.reject(agent, "why not")):
        with pytest.raises(RegistryError, match=f"^{re.escape(sentence)}$"):
            call("flights")
    assert verdicts() == [] and aliases(registry) == {"champion": "2", "previous": "1"}


def test_only_the_version_that_was_looked_at_is_approved_or_rejected(registry: Registry) -> None:
    registry.propose("3")
    for call in (promoting.approve, promoting.reject):
        with pytest.raises(RegistryError, match=r"version 1 of agent 'flights' does not wait .* flights@3 does"):
            call("flights", "seen", version=1)
    assert promoting.approve("flights", "seen", version=3).result == "promoted"


def test_a_rejected_challenger_waits_no_more_and_is_not_proposed_again(registry: Registry) -> None:
    registry.propose("3")
    with pytest.raises(RegistryError, match=r"why is flights@3 rejected\? Give a `reason`"):
        promoting.reject("flights", " ")
    verdict = promoting.reject("flights", "wrong at night")
    user = getpass.getuser()
    assert verdict.summary == f"flights@3 was rejected by {user}: wrong at night"
    assert (verdict.result, verdict.reasons[0].status) == ("rejected", "requested")
    assert verdict.evidence == {"challenger": "flights@3", "before": "flights@2", "by": user}
    assert registry.propose("3") == "" and aliases(registry) == {"champion": "2", "previous": "1"}
    assert [entry.rejected for entry in registry.versions()] == [True, False, False]

    promoting.promote_version("flights", 3, "better than I thought")
    assert [entry.rejected for entry in registry.versions()] == [False, False, False]
    base = KnowledgeBase(config.load("flights"))
    last = verdicts()[-1].as_of
    assert promoted_at(base, "flights@3", None) == last and promoted_at(base, "flights@2", None) is None


def test_a_version_waits_again_under_a_verdict_of_its_own(manual: Registry) -> None:
    first = promoting.promote_member("flights", 3, POOL, BETTER, NOON)
    manual.withdraw("3")
    assert promoting.promote_member("flights", 3, POOL, BETTER, NOON).verdict_id != first.verdict_id


# --------------------------------------------------------------------------- moved in MLflow by hand


def test_an_alias_that_was_moved_by_hand_is_recorded(registry: Registry) -> None:
    release = registry.unrecorded_champion()
    assert release is None and promoting.describe_unrecorded_champion("flights") == ""
    move_by_hand(registry, "3")
    assert promoting.describe_unrecorded_champion("flights") == (
        "flights@3 was made champion in MLflow by hand, the last recorded champion is flights@2: the next watch "
        "records it; `python -m flows promote --agent flights --rollback` goes back"
    )
    verdict = promoting.record_unrecorded_champion("flights", NOON)
    assert verdict is not None and (verdict.result, verdict.as_of) == ("promoted", NOON)
    assert verdict.summary == "flights@3 is champion instead of flights@2: moved in MLflow by hand"
    for name in ("flights", "flights-teacher", "flights-student"):
        assert aliases(registry, name) == {"champion": "3", "previous": "2"}
    _, envelope = registry.models.envelopes(registry.champion())
    assert envelope is not None and registry._newest_release().version == "3"
    assert promoting.record_unrecorded_champion("flights") is None and verdicts() == [verdict]
    assert promoting.describe_unrecorded_champion("flights") == ""
    promoting.roll_back("flights")
    assert aliases(registry) == {"champion": "2", "previous": "1"}


@pytest.mark.slow
def test_the_same_move_by_hand_after_a_rollback_has_a_verdict_of_its_own(registry: Registry) -> None:
    for _ in range(2):
        move_by_hand(registry, "3")
        assert promoting.record_unrecorded_champion("flights").result == "promoted"
        promoting.roll_back("flights")
    assert [verdict.result for verdict in verdicts()] == ["promoted", "rolled_back"] * 2


def test_a_rollback_after_a_move_by_hand_restores_the_recorded_champion(registry: Registry) -> None:
    move_by_hand(registry, "3")
    verdict = promoting.roll_back("flights", "not I")
    assert verdict.summary == "flights@2 is champion instead of flights@3: not I"
    for name in ("flights", "flights-teacher", "flights-student"):
        assert aliases(registry, name) == {"champion": "2", "previous": "1"}
    assert registry.unrecorded_champion() is None


def test_a_champion_alias_that_was_deleted_by_hand_is_restored(registry: Registry) -> None:
    registry.client.delete_registered_model_alias("flights", "champion")
    assert promoting.record_unrecorded_champion("flights") is None
    assert promoting.roll_back("flights").summary.startswith("flights@2 is champion instead of none")
    assert aliases(registry) == {"champion": "2", "previous": "1"}


def test_a_promotion_after_a_move_by_hand_replaces_the_recorded_champion(registry: Registry) -> None:
    move_by_hand(registry, "1")
    verdict = promoting.promote_version("flights", 3, "the newest")
    assert verdict.evidence["before"] == "flights@2" and aliases(registry) == {"champion": "3", "previous": "2"}


def test_an_unsigned_champion_is_refused_and_can_be_rolled_back(registry: Registry) -> None:
    registry.client.delete_model_version_tag("flights", "3", "signature")
    move_by_hand(registry, "3")
    sentence = r"flights@3 was made champion in MLflow by hand and is refused: .* Go back to flights@2 with `python -m"
    assert re.match(sentence, promoting.describe_unrecorded_champion("flights"))
    with pytest.raises(SignatureError, match=sentence):
        promoting.record_unrecorded_champion("flights")
    assert verdicts() == [] and aliases(registry)["previous"] == "1"
    assert promoting.roll_back("flights").result == "rolled_back"
    assert aliases(registry) == {"champion": "2", "previous": "1"}


def test_a_store_without_the_record_believes_its_releases_and_else_the_alias(registry: Registry) -> None:
    registry.client.delete_registered_model_tag("flights", "recorded_champion")
    assert registry.unrecorded_champion() is None
    move_by_hand(registry, "3")
    unrecorded = registry.unrecorded_champion()
    assert unrecorded is not None and str(unrecorded.recorded) == "flights@2" and unrecorded.by_hand
    for version in "12":
        registry.client.delete_model_version_tag("flights", version, "release")
    assert registry.unrecorded_champion() is None
    registry.promote("1")
    assert aliases(registry) == {"champion": "1", "previous": "3"}


def test_a_deleted_recorded_champion_does_not_hide_a_move_by_hand(registry: Registry) -> None:
    move_by_hand(registry, "3")
    registry.client.delete_registered_model_alias("flights", "previous")
    registry.client.delete_model_version("flights", "2")
    assert promoting.record_unrecorded_champion("flights").evidence["before"] is None
    assert aliases(registry)["champion"] == "3"


def test_while_a_refresh_runs_a_move_by_hand_waits(registry: Registry) -> None:
    move_by_hand(registry, "3")
    with refresh_lock("flights"):
        assert promoting.record_unrecorded_champion("flights") is None
    assert promoting.record_unrecorded_champion("flights") is not None


def test_status_reports_a_move_by_hand(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    status("flights")
    assert "problem" not in capsys.readouterr().out
    move_by_hand(registry, "3")
    status("flights")
    assert "problem: flights@3 was made champion in MLflow by hand" in capsys.readouterr().out.replace("\n", " ")


# --------------------------------------------------------------------------- by the pool


def test_the_pool_promotes_a_member(registry: Registry) -> None:
    verdict = promoting.promote_member("flights", "3", POOL, BETTER, NOON)
    assert (verdict.result, verdict.as_of, verdict.reasons) == ("promoted", NOON, tuple(BETTER))
    assert verdict.summary == "flights@3 is champion instead of flights@2: its accuracy is 2 points higher"
    assert verdict.evidence == {"champion": "flights@3", "before": "flights@2", "pool": POOL}
    assert promoting.promote_member("flights", "3", POOL, BETTER, NOON) == verdict
    assert verdicts() == [verdict] and aliases(registry) == {"champion": "3", "previous": "2"}


def test_under_manual_approval_the_pool_proposes(manual: Registry) -> None:
    verdict = promoting.promote_member("flights", 3, POOL, BETTER, NOON)
    assert verdict.result == "awaiting_approval" and verdict.evidence["pool"] == POOL
    assert aliases(manual) == {"champion": "2", "previous": "1", "challenger": "3"}
    assert promoting.promote_member("flights", 3, POOL, BETTER) == verdict  # the same verdict at every watch
    rejection = promoting.reject("flights", "no")
    assert promoting.promote_member("flights", 3, POOL, BETTER) == rejection
    assert aliases(manual) == {"champion": "2", "previous": "1"} and len(verdicts()) == 2


def test_the_pool_undoes_a_promotion_once(registry: Registry) -> None:
    verdict = promoting.undo_promotion("flights", "flights@2", POOL, WORSE, NOON)
    assert (verdict.result, verdict.as_of) == ("rolled_back", NOON)
    assert verdict.summary == "flights@1 is champion instead of flights@2: its accuracy is 2 points lower"
    assert verdict.evidence == {"champion": "flights@1", "before": "flights@2", "pool": POOL}
    assert promoting.undo_promotion("flights", "flights@2", POOL, WORSE, NOON) == verdict
    assert aliases(registry) == {"champion": "1"} and verdicts() == [verdict]
    with pytest.raises(RegistryError, match=r"flights@3 cannot be undone: the champion of 'flights' is flights@1"):
        promoting.undo_promotion("flights", "flights@3", POOL, WORSE)


# --------------------------------------------------------------------------- killed at any write

_WRITES = (
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "set_registered_model_tag",
    "delete_registered_model_tag",
)


def killed_after(writes: int, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> bool:
    """Let the registry and the journal take so many writes, and die before the next; whether it died."""
    remaining = iter(range(writes))

    def limited(owner: type, name: str) -> None:
        original: Any = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if next(remaining, None) is None:
                raise Killed
            return original(*args, **kwargs)

        patch.setattr(owner, name, call)

    with monkeypatch.context() as patch:
        for name in _WRITES:
            limited(MlflowClient, name)
        limited(Tables, "append")
        try:
            action()
        except Killed:
            return True
        return False


CALLS: dict[str, tuple[Callable[[Registry], object], Callable[[], Verdict | None], dict[str, str]]] = {
    "approve": (
        lambda registry: registry.propose("3"),
        lambda: promoting.approve("flights", "good", "ada"),
        {"champion": "3", "previous": "2"},
    ),
    "reject": (
        lambda registry: registry.propose("3"),
        lambda: promoting.reject("flights", "bad", "ada"),
        {"champion": "2", "previous": "1"},
    ),
    "promote": (
        lambda registry: None,
        lambda: promoting.promote_version("flights", 3),
        {"champion": "3", "previous": "2"},
    ),
    "roll back": (lambda registry: None, lambda: promoting.roll_back("flights"), {"champion": "1"}),
    "undo": (
        lambda registry: None,
        lambda: promoting.undo_promotion("flights", "flights@2", POOL, WORSE),
        {"champion": "1"},
    ),
    "promote a member": (
        lambda registry: None,
        lambda: promoting.promote_member("flights", 3, POOL, BETTER),
        {"champion": "3", "previous": "2"},
    ),
    "record a move by hand": (
        lambda registry: move_by_hand(registry, "3"),
        lambda: promoting.record_unrecorded_champion("flights"),
        {"champion": "3", "previous": "2"},
    ),
}


FAST = ("record a move by hand",)  # the others write in similar orders


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in CALLS])
def test_a_call_that_is_killed_at_any_write_is_completed_by_the_next(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    prepare, call, ends_with = CALLS[name]
    for writes in range(50):
        recorded = len(verdicts())
        prepare(registry)
        if not killed_after(writes, monkeypatch, call):
            break
        call()
        assert aliases(registry) == ends_with, f"after {writes} writes"
        for role in ("teacher", "student"):
            assert aliases(registry, f"flights-{role}") == ends_with, f"after {writes} writes"
        new = verdicts()[recorded:]
        assert len(new) == 1 and len({verdict.verdict_id for verdict in verdicts()}) == recorded + 1, new
        assert registry.unrecorded_champion() is None
        restore(registry)
    assert writes >= 3


def restore(registry: Registry) -> None:
    """Versions 1 and 2 promoted again, and 3 free to be proposed."""
    if registry.champion().version != "2":
        registry.promote("1")
        registry.promote("2")
    registry._set_version_tags("3", rejected_at="")


@pytest.mark.slow
def test_an_interrupted_promotion_is_completed_without_a_verdict(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for writes in range(50):
        if not killed_after(writes, monkeypatch, lambda: registry.promote("3")):
            break
        assert promoting.record_unrecorded_champion("flights") is None
        champion = aliases(registry)["champion"]
        assert registry.unrecorded_champion() is None and verdicts() == []
        if champion == "2":
            registry.promote("3")
        for role in ("teacher", "student"):
            assert aliases(registry, f"flights-{role}")["champion"] == "3"
        restore(registry)
    assert writes > 5
