"""A person's rows are forgotten: no file of the home holds any of them, and the models that learned are named."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest

import stillhouse
from stillhouse import config
from stillhouse.champion import open_registry
from stillhouse.errors import ConfigError, SchemaError
from stillhouse.forgetting import places, run
from stillhouse.forgetting.run import forget, preview
from stillhouse.ingesting import ingest
from stillhouse.knowledge import KnowledgeBase, forget_requests, upkeep
from stillhouse.knowledge.events import Decided, Outcomes
from stillhouse.knowledge.integrity import find_problems
from stillhouse.knowledge.spool import Spool, spool_folder
from stillhouse.records import ForgetRequest
from tests.flows import clerk
from tests.knowledge.test_erasing import files_with

pytestmark = pytest.mark.slow  # the clerk's refresh and watch take a minute

CANARY = "please drop the zqx taxi of Ms. Canary-Vogel"
OWN_ID = "person-7f"


@pytest.fixture(scope="session")
def clerk_home(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """The clerk with a champion that learned from a person's sentence, a watch since, and events that wait."""
    folder = tmp_path_factory.mktemp("clerk")
    (folder / "agents").mkdir()
    text = (Path(clerk.__file__).with_name("clerk.yaml")).read_text()
    text = text.replace("recipes: [{method: fp32}, {method: int8_dynamic}]", "recipes: [{method: fp32}]")
    (folder / "agents" / "clerk.yaml").write_text(
        text.replace("min_slice_rows: 100", "min_slice_rows: 100, final_fit: never")
    )
    (folder / "home" / "mlflow").mkdir(parents=True)
    shutil.copy(empty_mlflow, folder / "home" / "mlflow")
    history = clerk.HISTORY.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLHOUSE_AGENTS", str(folder / "agents"))
        patch.setenv("STILLHOUSE_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(clerk, "HISTORY", history)
        for time in (day(8), day(15), day(22)):  # in the training window, the first row of the test window, the watch
            row = history.index[history["observed_at"] >= time][0]
            history.loc[row, ["said", "observation_id"]] = CANARY, f"{OWN_ID}-{time.day}"
        ingest("clerk", day(0), day(20))
        verdict = stillhouse.refresh("clerk", as_of=day(20), trigger="bootstrap", cause="first")
        assert verdict.result == "promoted", verdict.summary
        ingest("clerk", day(20), day(24))
        stillhouse.watch("clerk", as_of=day(24))
        upkeep.compact(
            KnowledgeBase(config.load("clerk")).tables, config.load("clerk").upkeep.model_copy(update={"min_files": 2})
        )
    return folder


def day(number: int) -> datetime:
    moment: datetime = (clerk.BEGIN + pd.Timedelta(days=number)).to_pydatetime()
    return moment


@pytest.fixture
def home(clerk_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(clerk_home / "home", tmp_path / "home")
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(clerk_home / "agents"))
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    open_registry.__globals__["_connect"].cache_clear()
    return tmp_path / "home"


REQUEST = ForgetRequest(where=(("said", CANARY),))


def leave_traces(home: Path) -> None:
    """What is left in other places by the runtime, by checks, and by killed runs."""
    spool = Spool(spool_folder("clerk"))
    seen = {"observed_at": [0, 0], "columns": ["said", "place"], "values": [[CANARY, "desk"], ["Hello", "desk"]]}
    spool.put(
        Decided(
            observation_ids=[f"{OWN_ID}-0", "other-0"],
            decision_ids=[f"d-{OWN_ID}", "d-other"],
            decided_at=[1, 1],
            actions=["drop", "greet"],
            probabilities=[[0.1, 0.2, 0.3, 0.4]] * 2,
            deciders=["student"] * 2,
            versions=["clerk@1"] * 2,
            **seen,
        ),
        Outcomes(observation_ids=["other-0"], observed_at=[0], known_at=[1], actions=["greet"]),
    )
    spool.put(Decided(**{name: [] for name in DECIDED}, **(seen | {"observed_at": []})))  # cannot become rows: dead
    spool.close()
    docs = home / "data_docs" / "clerk"
    docs.mkdir(parents=True)
    (docs / "check.html").write_text(f"<td>{CANARY}</td>")
    registry = open_registry("clerk")
    champion = registry.champion()
    assert champion is not None and champion.run_id is not None
    registry.runs.log_files(champion.run_id, {"pages/samples.json": json.dumps({"rows": [CANARY, "Hello"]}).encode()})
    registry.runs.set_tags(champion.run_id, note=f"said: {CANARY}")
    base = KnowledgeBase(config.load("clerk"))
    base.tables.append(
        "quarantine",
        pd.DataFrame(
            {
                "observation_id": ["import.csv:7", "import.csv:8"],
                "observed_at": [clerk.BEGIN, clerk.BEGIN],
                "reasons": [[f"said: {CANARY!r} is too long"], ["place: 'x' is unknown"]],
            }
        ),
        batch="import",
    )


DECIDED = ("observation_ids", "decision_ids", "decided_at", "actions", "probabilities", "deciders", "versions")


def test_nothing_of_a_person_is_left_and_everything_else_is(home: Path) -> None:
    leave_traces(home)
    before = KnowledgeBase(config.load("clerk"))
    rows, windows = before.tables.count_rows(), open_registry("clerk").windows()
    assert files_with(home, CANARY, OWN_ID)

    found = preview("clerk", REQUEST)
    assert found.dry_run and found.observations == 4 and found.rows["observations"] == 4
    assert {"clerk@1", "clerk-student@1", "clerk-teacher@1"} == set(found.learned)
    assert files_with(home, CANARY, OWN_ID), "a dry run removes nothing"

    report = forget("clerk", REQUEST)
    assert (report.observations, report.left, report.problems) == (4, (), ())
    assert not files_with(home, CANARY, OWN_ID)
    assert not forget_requests.pending("clerk") and not find_problems(before.tables)

    base = KnowledgeBase(config.load("clerk"))
    after = base.tables.count_rows()
    assert after["observations"] == rows["observations"] + 1 - 3  # one came from the spool
    assert after["outcomes"] == rows["outcomes"] + 1 - 3
    assert after["quarantine"] == 1 and after["knowledge"] == rows["knowledge"] - 1
    for window in windows["clerk@1"]:  # pinned to versions from before
        assert len(base.read("observations", window)) == round((window.end - window.start).total_seconds() / 720) - 1
    (entry,) = base.journal.verdicts("forget")
    assert (entry.result, entry.summary) == ("forgotten", "forgotten: 4 rows")
    assert stillhouse.watch("clerk", as_of=day(24)).result
    again = preview("clerk", REQUEST)
    assert again.observations == 0


def test_models_keep_their_signatures_and_decide_as_before(home: Path, clerk_home: Path) -> None:
    registry = open_registry("clerk")
    champion = registry.champion()
    assert champion is not None
    model_id = registry.models.signed(champion).model_id
    example = home / "mlflow" / "artifacts" / "models" / model_id / "artifacts" / "input_example.json"
    assert json.loads(example.read_text())["data"][0] != ["", ""]
    forget("clerk", REQUEST)
    assert json.loads(example.read_text()) == {"columns": ["place", "said"], "data": [["", ""]] * 4}
    shutil.rmtree(home / "models", ignore_errors=True)
    registry.models.fetch_whole(champion, home / "whole")  # every file is compared with the signature
    assert registry.models.student_files(champion)
    assert stillhouse.Variant(registry.models.fetch(champion)).predict(
        pd.DataFrame({"said": ["hello"], "place": ["desk"]})
    )["action"].tolist() == ["greet"]


def test_verify_says_that_rows_were_forgotten(home: Path) -> None:
    from stillhouse.certifying.run import verify

    base = KnowledgeBase(config.load("clerk"))
    gate = base.journal.verdicts("gate")[-1]
    forget("clerk", REQUEST)
    verification = verify("clerk", gate.verdict_id)
    assert not verification.identical
    assert any("since this verdict, rows were forgotten" in sentence for sentence in verification.missing)
    entry = base.journal.verdicts("forget")[-1]
    assert verify("clerk", entry.verdict_id).identical
    assert verify("clerk", "last").verdict_id != entry.verdict_id


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", range(14))
def test_a_run_that_was_killed_is_completed_by_the_next(
    home: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    leave_traces(home)
    with monkeypatch.context() as patch:
        cleaned = list[str]()
        whole = places.places

        def places_until(agent: str) -> tuple[places.Place, ...]:
            return tuple(_Killed(place) if number == kill_at else place for number, place in enumerate(whole(agent)))

        patch.setattr(run, "places", places_until)
        if kill_at == 13:  # after all places, before it is recorded
            patch.setattr(run, "_verdict", _raise)
        with pytest.raises(KeyboardInterrupt):
            forget("clerk", REQUEST, cleaned.append)
    (pending,) = forget_requests.pending("clerk")
    assert CANARY not in pending.model_dump_json()
    assert any("is not carried out: `stillhouse forget clerk` completes it" in text for text in _problems())
    report = forget("clerk", ForgetRequest())
    assert report.completed == (pending.request_id,) and not report.left
    assert not files_with(home, CANARY, OWN_ID)
    assert [entry.summary for entry in KnowledgeBase(config.load("clerk")).journal.verdicts("forget")] == [
        "forgotten: 4 rows"
    ]


def _problems() -> list[str]:
    return find_problems(KnowledgeBase(config.load("clerk")).tables)


class _Killed:
    """A place whose cleaning is done, and whose process dies before it says so."""

    def __init__(self, place: places.Place) -> None:
        self._place, self.name = place, place.name
        self.find, self.count = place.find, place.count

    def erase(self, selection: object) -> list[str]:
        self._place.erase(selection)  # type: ignore[arg-type]
        raise KeyboardInterrupt


def _raise(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_request_must_select_something_that_exists(home: Path) -> None:
    with pytest.raises(ConfigError, match="say which rows to forget"):
        forget("clerk", ForgetRequest())
    with pytest.raises(SchemaError, match="no column 'name': --where takes one of observation_id, said, place"):
        preview("clerk", ForgetRequest(where=(("name", "ann"),)))
    report = forget("clerk", ForgetRequest(ids=("nobody",)))
    assert report.observations == 0 and not KnowledgeBase(config.load("clerk")).journal.verdicts("forget")


def test_a_decision_names_its_observation(home: Path) -> None:
    base = KnowledgeBase(config.load("clerk"))
    decision = base.read("decisions").iloc[-1]
    report = forget("clerk", ForgetRequest(decisions=(decision["decision_id"],)))
    assert report.observations == 1 and report.rows["decisions"] == 1
    assert decision["observation_id"] not in set(base.read("observations")["observation_id"])
    assert not files_with(home / "spool", decision["observation_id"])


def test_free_pages_of_a_spool_are_overwritten(home: Path) -> None:
    spool = Spool(spool_folder("clerk"))  # this process goes on writing
    spool.put(
        Outcomes(
            observation_ids=[f"{OWN_ID}-8"] * 500, observed_at=[0] * 500, known_at=[1] * 500, actions=["greet"] * 500
        )
    )
    path = spool_folder("clerk") / f"{spool.name}.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("pragma secure_delete = off")
    connection.execute("delete from events")  # as a flush of an older version left it
    connection.commit()
    connection.execute("pragma wal_checkpoint(truncate)")
    connection.close()
    assert OWN_ID.encode() in path.read_bytes()
    forget("clerk", REQUEST)
    assert not files_with(home / "spool", OWN_ID)
    spool.put(Outcomes(observation_ids=["later"], observed_at=[0], known_at=[1], actions=["greet"]))
    assert spool.depth() == 1
    spool.close()


@pytest.fixture
def run_command(
    home: Path, clerk_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable:
    from tests.command import command

    return command(home, clerk_home / "agents", monkeypatch, capsys)


def test_the_command_asks_shows_and_ends_with_an_exit_code(run_command: Callable, home: Path) -> None:
    shown = run_command("forget", "clerk", "--where", f"said={CANARY}", "--dry-run")
    assert shown.returncode == 0 and "would be forgotten: 3 observations" in shown.stdout
    assert "clerk@1 learned from them: trained on" in shown.stdout
    refused = run_command("forget", "clerk", "--where", f"said={CANARY}")
    assert refused.returncode and "allow it with --yes" in refused.stderr + refused.stdout
    done = run_command("forget", "clerk", "--where", f"said={CANARY}", "--yes")
    assert done.returncode == 0 and "no file of the home shows their ids or texts any more" in done.stdout
    assert "forgotten: 3 rows" in run_command("history", "clerk").stdout
    assert "agent 'clerk' has no such row" in run_command("forget", "clerk", "--id", OWN_ID, "--yes").stdout
