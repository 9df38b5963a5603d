"""Versions and aliases: the life of a few refreshes, and states after a kill in the middle of a promotion."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mlflow import MlflowClient

from stillhouse.errors import RegistryError
from stillhouse.records import Window
from stillhouse.registry import Lineage, Registry, Rollback

from .conftest import Life, baseline, log_variant, rows, scorecard, variant_folder


class Killed(BaseException):
    """Stands for the process's death: nothing may catch it."""


def aliases(registry: Registry, name: str = "flights") -> dict[str, str]:
    versions = registry.client.get_registered_model(name).aliases
    return {alias: str(version) for alias, version in versions.items()}


def test_two_promotions_and_a_rollback(three: Registry) -> None:
    three.promote("1")
    assert aliases(three) == {"champion": "1"}
    three.propose("2")
    assert three.challenger().version == "2"
    three.promote("2")
    assert aliases(three) == {"champion": "2", "previous": "1"}
    assert three.models.tags(three.champion())["champion_before"] == "1"
    for role in ("teacher", "student"):
        assert aliases(three, f"flights-{role}") == {"champion": "2", "previous": "1"}

    assert three.rollback().version == "1"
    assert aliases(three) == {"champion": "1"}
    for role in ("teacher", "student"):
        assert aliases(three, f"flights-{role}") == {"champion": "1"}
    assert three.models.tags(three.version("flights", "2"))["rolled_back_to"] == "1"
    with pytest.raises(RegistryError, match=r"no champion before version 1.*versions: 3, 2, 1"):
        three.rollback()
    assert aliases(three) == {"champion": "1"}


def test_rollback_goes_back_further_each_time(three: Registry) -> None:
    for version in "123":
        three.promote(version)
    assert (three.rollback().version, three.previous().version) == ("2", "1")
    assert (three.rollback().version, three.previous()) == ("1", None)
    three.promote("3")
    assert aliases(three) == {"champion": "3", "previous": "1"}


def test_promote_twice_changes_nothing(three: Registry) -> None:
    three.promote("1")
    three.promote("2")
    before = aliases(three), three.models.tags(three.champion())
    three.promote("2")
    assert (aliases(three), three.models.tags(three.champion())) == before


def test_unknown_version_is_refused_with_those_there_are(three: Registry) -> None:
    with pytest.raises(RegistryError, match=r"no version '7'; there are: 3, 2, 1"):
        three.promote("7")
    with pytest.raises(RegistryError, match="no version '7'"):
        three.propose("7")
    assert three.version("flights", "7") is None
    assert three.version("no-such-model", "champion") is None
    with pytest.raises(RegistryError, match="no champion; promote"):
        three.rollback()


_WRITES = (
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "set_registered_model_tag",
    "delete_registered_model_tag",
)


def kill_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Let MLflow take so many writes to the registry, and die before the next."""
    remaining = iter(range(writes))

    def limited(name: str):  # type: ignore[no-untyped-def]
        original = getattr(MlflowClient, name)

        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            if next(remaining, None) is None:
                raise Killed
            return original(*args, **kwargs)

        return call

    for name in _WRITES:
        monkeypatch.setattr(MlflowClient, name, limited(name))


def killed(monkeypatch: pytest.MonkeyPatch, writes: int, action) -> bool:  # type: ignore[no-untyped-def]
    with monkeypatch.context() as patch:
        kill_after(patch, writes)
        try:
            action()
        except Killed:
            return True
        return False


@pytest.mark.slow
def test_promote_killed_at_any_write_and_run_again(three: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    three.promote("1")
    three.promote("2")
    three.propose("3")
    for writes in range(50):
        if not killed(monkeypatch, writes, lambda: three.promote("3")):
            break
        champion, previous = three.champion().version, three.previous().version
        assert (champion, previous) in {("2", "1"), ("2", "2"), ("3", "2")}, f"after {writes} writes"
        three.promote("3")
        assert aliases(three) == {"champion": "3", "previous": "2"}
        assert aliases(three, "flights-teacher") == {"champion": "3", "previous": "2"}
        three.rollback()
        assert aliases(three) == {"champion": "2", "previous": "1"}
        three.propose("3")
    assert writes > 5


@pytest.mark.slow
def test_rollback_killed_at_any_write_and_run_again(three: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in "123":
        three.promote(version)
    for writes in range(50):
        if not killed(monkeypatch, writes, three.rollback):
            break
        assert three.rollback().version == "2", f"after {writes} writes"
        assert aliases(three) == {"champion": "2", "previous": "1"}
        assert aliases(three, "flights-student") == {"champion": "2", "previous": "1"}
        three.promote("3")
    assert writes > 5


def test_rollback_after_a_promotion_that_was_killed_and_given_up(
    three: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    three.promote("1")
    three.promote("2")
    assert killed(monkeypatch, 3, lambda: three.promote("3"))  # two tags, and previous := 2
    assert aliases(three) == {"champion": "2", "previous": "2"}
    assert three.rollback().version == "1"
    assert aliases(three) == {"champion": "1"}


def test_register_is_idempotent(registry: Registry, life: Life, tmp_path: Path) -> None:
    models = life.refresh("r1")
    run = registry.runs.open_refresh("r2", tags={}, params={}).run_id
    folder = variant_folder(tmp_path / "v", "fp32")
    logged = log_variant(registry, run, folder, scorecard("fp32", "variant"), {}, Lineage(), rows())
    first = registry.register(logged, "flights", {"gate": "open"})
    assert registry.register(logged, "flights", {"gate": "passed"}) == first
    assert registry.register(first, "flights") == first
    assert (first.version, first.uri, first.run_id) == ("2", "models:/flights/2", logged.run_id)
    assert registry.models.tags(first)["gate"] == "passed"
    assert [entry.version for entry in registry.versions()] == ["2", "1"]
    assert models["fp32"].version == "1"


def test_versions_are_a_table(three: Registry) -> None:
    three.promote("1")
    three.promote("2")
    _, new, old = three.versions()
    assert (new.version, new.aliases, new.variant, new.refresh_id) == ("2", ("champion",), "fp32", "r2")
    assert (new.auc, new.bytes, new.p50_ms, new.champion_before) == (0.71, 1234, 0.04, "1")
    assert (old.aliases, old.champion_before, old.rolled_back) == (("previous",), None, False)
    three.rollback()
    assert three.versions()[1].rolled_back


def test_scorecard_comes_back_equal(three: Registry) -> None:
    three.promote("1")
    assert three.models.scorecard(three.champion()) == scorecard("fp32", "variant")
    assert three.models.scorecard(three.version("flights-teacher", "1")) == scorecard("teacher", "teacher")


def test_fetch_once_and_whole(three: Registry, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = three.models.fetch(three.version("flights", "1"))
    assert sorted(file.name for file in variant.iterdir()) == ["manifest.json", "model.onnx", "values.py", "variant.py"]
    assert (three.models.fetch(three.version("flights-teacher", "1")) / "rule" / "limit.txt").read_text() == "10.0"
    assert (three.models.fetch(three.version("flights-student", "1")) / "model.pt2").exists()

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", None)  # would fail if it were called again
    assert three.models.fetch(three.version("flights", "1")) == variant
    assert sorted(path.name for path in (home / "models").iterdir() if path.name.startswith(".")) == []


def test_fetch_killed_half_way_leaves_no_half_model(three: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args, **kwargs):  # type: ignore[no-untyped-def]
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("stillhouse.registry.downloads._replace", die)
        with pytest.raises(Killed):
            three.models.fetch(three.version("flights", "1"))
    assert (three.models.fetch(three.version("flights", "1")) / "model.onnx").exists()


def test_importing_is_cheap() -> None:
    code = "import sys, stillhouse.registry; print([m for m in ('mlflow', 'torch', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_windows_of_every_version(three: Registry) -> None:
    with pytest.raises(RegistryError, match=r"flights@3 has no baseline.json"):
        three.windows()
    start = datetime(2013, 1, 1, tzinfo=UTC)
    for entry in three.versions():
        days = [start + timedelta(days=7 * int(entry.version) + more) for more in (0, 5, 7)]
        train, test = (
            Window(name=name, start=begin, end=end, versions={"observations": int(entry.version)})
            for name, begin, end in (("train", *days[:2]), ("test", *days[1:]))
        )
        ref = three.version("flights", entry.version)
        assert ref is not None
        proved = baseline(ref, train=train, test=test)
        three.runs.log_record(three.models.tags(ref)["refresh_run"], proved, "baseline.json")
    windows = three.windows()
    assert list(windows) == ["flights@3", "flights@2", "flights@1"]
    train, test = windows["flights@2"]
    assert (train.start, train.end, test.end) == tuple(start + timedelta(days=14 + more) for more in (0, 5, 7))
    assert train.versions == test.versions == {"observations": 2}


def test_artifacts_are_cached_until_they_are_logged_again(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    ref, other, registry = life.refresh("r1")["fp32"], life.refresh("r2")["fp32"], life.registry
    run_id = registry.models.tags(ref)["refresh_run"]
    for _ in range(2):  # an absent artifact is not cached
        with pytest.raises(RegistryError, match=r"no artifact profile\.arrow"):
            registry.profile(ref)
        with pytest.raises(RegistryError, match=r"no baseline\.json"):
            registry.baseline(ref)
    registry.runs.log_files(run_id, {"baseline.json": baseline(ref), "profile.arrow": b"one"})
    assert (registry.baseline(ref).teacher, registry.profile(ref)) == (ref, b"one")
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.artifacts.download_artifacts", None)  # would fail if it were called again
        assert (registry.baseline(ref).teacher, registry.profile(ref)) == (ref, b"one")
    again = Registry("flights")
    again.runs.log_record(run_id, baseline(other), "baseline.json")
    again.runs.log_files(run_id, {"profile.arrow": b"two"})
    assert (registry.baseline(ref).teacher, registry.profile(ref)) == (other, b"two")


def test_before_the_first_version_there_are_no_windows(registry: Registry) -> None:
    assert registry.windows() == {}


def test_a_rollback_whose_record_was_killed_is_taken_up_again(three: Registry) -> None:
    for version in "123":
        three.promote(version)
    rollbacks: list[Rollback] = []

    def killed_while_recording(done: Rollback) -> None:
        rollbacks.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        three.rollback(killed_while_recording)
    assert three.rollback(rollbacks.append).version == "2"
    assert rollbacks[0] == rollbacks[1] and rollbacks[0].before is not None and rollbacks[0].before.version == "3"
    assert three.rollback(rollbacks.append).version == "1" and rollbacks[2].began_at > rollbacks[0].began_at


def test_promotion_names_the_replaced_champion_after_repeated_calls(three: Registry) -> None:
    three.promote("1")
    three.promote("3")
    first = three.promotion("3")
    three.promote("3")
    assert first == three.promotion("3") and first[0] is not None and first[0].version == "1"


def test_an_open_registry_notices_a_missing_or_replaced_store(three: Registry, tmp_path: Path) -> None:
    database, away, backup = (Path(three.client.file or ""), tmp_path / "away.db", tmp_path / "backup.db")
    three.promote("1")
    shutil.copyfile(database, backup)
    three.promote("2")
    database.rename(away)
    with pytest.raises(RegistryError, match="is gone: put it back, or restore it from a backup"):
        three.champion()
    assert not database.exists()
    away.rename(database)
    assert aliases(three)["champion"] == "2"
    backup.rename(database)
    assert aliases(three)["champion"] == "1"


def test_version_shows_what_a_person_reads_and_its_page_says_registered(three: Registry) -> None:
    version = three.client.get_model_version("flights", "2")
    assert set(version.tags) == {"quality", "bytes", "p95_ms", "gate", "signature"}
    assert version.tags["quality"] == "auc 0.71 on its own test window"
    logged = three.client.get_logged_model(str(version.source).removeprefix("models:/"))
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "flights", "version": "2"}]
    assert three.models.tags(three.version("flights", "2"))["refresh_id"] == "r2"  # what programs need


def test_chosen_is_true_of_what_was_promoted(three: Registry) -> None:
    three.set_chosen("2", False)
    three.promote("2")
    assert three.models.tags(three.champion())["chosen"] == "True"
    assert three.client.get_run(three.champion().run_id).data.tags["chosen"] == "True"


def test_versions_of_an_older_stillhouse_have_all_tags_themselves(three: Registry) -> None:
    facts = {"refresh_run": "abc", "refresh_id": "r2", "variant": "old", "chosen": "False", "auc": "0.6"}
    for key, value in facts.items():
        three.client.set_model_version_tag("flights", "2", key, value)
    assert three.version_of("r2", "old") == "2"
    assert three.models.tags(three.version("flights", "2")).items() >= facts.items()
    assert [entry.auc for entry in three.versions()] == [0.71, 0.6, 0.71]
    assert [member.model.version for member in three.pool_versions()] == ["1", "3"]  # another candidate
    three.promote("2")
    assert [member.model.version for member in three.pool_versions()] == ["1", "2", "3"]


def test_descriptions_are_of_version_model_and_experiment(three: Registry) -> None:
    three.describe_champion("1", "flights@1 is champion")
    three.describe_version("2", "flights@2 was refused", result="refused")
    assert three.client.get_model_version("flights", "1").description == "flights@1 is champion"
    assert three.client.get_registered_model("flights").description == "flights@1 is champion"
    assert three.client.get_model_version("flights", "2").tags["result"] == "refused"
