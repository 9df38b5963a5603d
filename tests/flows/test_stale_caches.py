"""The caches of a process are invalidated when the store changes."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

import stillhouse
from stillhouse import promoting
from stillhouse.champion import load_champion, open_registry
from stillhouse.config import home
from stillhouse.demonstrating import find_first_champion
from stillhouse.errors import ConfigError, SignatureError, WindowError
from stillhouse.ingesting import ingest
from stillhouse.knowledge import KnowledgeBase
from stillhouse.refreshing import session
from stillhouse.watching.window import get_window, open_window
from tests.flows import toy


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"teacher": "keep"}, {"mode": "update"}, {"mode": "recalibrate"}])
def test_fetched_models_may_be_deleted_between_calls(toy_base, day, more: dict[str, str]) -> None:
    toy_base(24)
    assert stillhouse.watch("toy", day(24)).kind == "watch"
    assert load_champion("toy").teacher_folder().exists()
    shutil.rmtree(home() / "models")
    assert stillhouse.refresh("toy", day(24), cause="later", **more).kind == "gate"  # type: ignore[arg-type]


@pytest.mark.slow
def test_teacher_altered_on_disk_is_not_used(toy_base, day, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_base(24)
    champion = load_champion("toy")
    folder = champion.teacher_folder()
    file = next(folder.rglob("logistic.json"))
    sound = file.read_text()
    file.write_text(sound.replace("0", "1"))
    assert next(champion.teacher_folder().rglob("logistic.json")).read_text() == sound  # fetched again
    monkeypatch.setattr("stillhouse.registry.models.download_signed", _refuse)
    with pytest.raises(SignatureError):
        champion.teacher_folder()


def _refuse(*_: object) -> None:
    raise SignatureError("not what was signed")


def test_replaced_store_is_reconnected(toy_base, day) -> None:
    toy_base(20)
    before = open_registry("toy")
    assert open_registry("toy") is before
    shutil.copytree(home() / "mlflow", home() / "backup")
    shutil.rmtree(home() / "mlflow")
    (home() / "backup").rename(home() / "mlflow")
    after = open_registry("toy")
    assert after is not before and after.champion() == before.champion()


def test_cached_window_has_the_rows_of_its_table_versions(toy_base, day) -> None:
    toy_base(21)
    _, first = open_window("toy", day(23))
    rows = len(get_window("toy", first).raw)
    ingest("toy", day(21), day(22))
    _, second = open_window("toy", day(23))
    assert len(get_window("toy", second).raw) == rows + toy.PER_DAY
    assert len(get_window("toy", first).raw) == rows


def test_refresh_closes_its_session_on_success_and_failure(toy_base, day) -> None:
    toy_base(20)
    with pytest.raises(WindowError, match="500 are needed"):
        stillhouse.refresh("toy", day(8))
    assert stillhouse.refresh("toy", day(20), trigger="bootstrap", cause="first").result == "promoted"
    assert not [refresh_id for opened_in, refresh_id in session._OPEN_SESSIONS if opened_in == home()]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "redistill"}, "mode: 'redistill' is none of recalibrate, update"),
        ({"teacher": "guess"}, "teacher: 'guess' is none of fit, keep"),
        ({"trigger": "whim"}, "trigger: 'whim' is none of"),
        ({"cause": "x" * 501}, "cause: has 501 characters, and may have 500"),
    ],
)
def test_invalid_arguments_are_refused_in_one_sentence(toy_base, day, wrong: dict[str, str], message: str) -> None:
    toy_base(20)
    with pytest.raises(ConfigError, match=message):
        stillhouse.refresh("toy", day(20), **wrong)  # type: ignore[arg-type]
    for job in (stillhouse.refresh, stillhouse.watch):
        with pytest.raises(WindowError, match="is a str, and must be a datetime"):
            job("toy", "2024-01-21")  # type: ignore[operator]


def test_watch_without_a_champion_says_how_to_make_one(agents, day) -> None:
    ingest("toy", day(0), day(5))
    with pytest.raises(WindowError, match=r"no champion that could be watched: make one with .*--trigger bootstrap"):
        stillhouse.watch("toy", day(5))


@pytest.mark.slow
def test_demo_continues_after_manual_approval(agents, day) -> None:
    file = agents / "toy.yaml"
    file.write_text(file.read_text().replace("promotion: {", "promotion: {approval: manual, "))
    ingest("toy", day(0), day(20))
    stillhouse.refresh("toy", day(20), trigger="bootstrap", cause="first")
    with pytest.raises(
        WindowError, match=r"toy@\d+ waits for a person's approval: promote it with .* promote --agent toy`"
    ):
        find_first_champion("toy")
    version = int(open_registry("toy").challenger().version)
    promoting.promote_version("toy", version, "looked at")
    assert find_first_champion("toy").version == str(version)


def test_answers_of_a_restored_table_are_read_again(toy_base, day) -> None:
    base = toy_base(20)
    rows = base.read_observations(base.window("w", day(16), day(20)))
    few = rows.head(20)
    base.answers.append(few, pd.DataFrame([[0.5, 0.5]] * 20).to_numpy(), teacher="before")
    table = home() / "knowledge" / "toy" / "knowledge"
    shutil.copytree(table, home() / "copy")
    more = rows.iloc[20:40]
    base.answers.append(more, pd.DataFrame([[0.2, 0.8]] * 20).to_numpy(), teacher="before")
    assert base.answers.probs(more, "before")[:, 0].tolist() == [0.2] * 20
    shutil.rmtree(table)
    (home() / "copy").rename(table)
    other, third = KnowledgeBase(base.config), rows.iloc[40:60]
    other.answers.append(third, pd.DataFrame([[0.9, 0.1]] * 20).to_numpy(), teacher="before")
    assert base.answers.probs(third, "before")[:, 0].tolist() == [0.9] * 20
    assert pd.isna(base.answers.probs(more, "before")).all()
