"""Every answer is read once, whichever process wrote it; the cost of a lookup does not grow with the agent's age."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.drift import evidence
from stillhouse.knowledge import KnowledgeBase, tables
from stillhouse.knowledge.answer_cache import AnswerCache
from stillhouse.records import EvidenceRows, Spending, Verdict, WeightChange, Window
from tests.knowledge.parts_for_tests import START, make_config, make_rows

DAY = timedelta(days=1)


@pytest.fixture
def kb(tmp_path: Path) -> KnowledgeBase:
    return KnowledgeBase(make_config(), tmp_path / "kb")


@contextmanager
def scans() -> Iterator[tuple[Counter[str], Counter[str], Counter[str]]]:
    """Counts scans, rows read and files read, by table."""
    times, rows, files = Counter[str](), Counter[str](), Counter[str]()
    scan = tables.Tables.scan

    def counting(self: Any, table: Any, dataset: Any, columns: Any, condition: Any, **options: Any) -> Any:
        times[table] += 1
        rows[table] += scan(self, table, dataset, columns, condition).count_rows()
        files[table] += len(dataset.files)
        return scan(self, table, dataset, columns, condition, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables.Tables, "scan", counting)
        yield times, rows, files


def another(kb: KnowledgeBase) -> KnowledgeBase:
    """The same knowledge base as another process opens it."""
    return KnowledgeBase(kb.config, kb.root)


def observed(kb: KnowledgeBase, first: int, count: int) -> pd.DataFrame:
    rows = make_rows(first, count)
    kb.append_observations(rows, batch=f"{first}")
    end = rows["observed_at"].max() + timedelta(hours=1)
    return kb.read_observations(Window(name="w", start=rows["observed_at"].min(), end=end))


def half(rows: pd.DataFrame) -> np.ndarray[Any, Any]:
    return np.tile([0.5, 0.5], (len(rows), 1))


# --------------------------------------------------------------------------- the cache


def test_the_cache_keeps_the_answer_asked_for_first() -> None:
    cache = AnswerCache(2)
    cache.add(["a", "b", "a"], np.array([5, 5, 3]), np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]]))
    cache.add(["b", "a", "c"], np.array([9, 2, 1]), np.array([[0.4, 0.6], [0.5, 0.5], [0.6, 0.4]]))
    actual = cache.lookup(["c", "a", "b", "d"])
    np.testing.assert_array_equal(actual, [[0.6, 0.4], [0.5, 0.5], [0.2, 0.8], [np.nan] * 2])
    assert len(cache) == 3 and "b" in cache and "d" not in cache


def test_a_cache_grows_with_its_answers() -> None:
    cache = AnswerCache(1, np.float32)
    for first in range(0, 2000, 50):
        numbers = np.arange(first, first + 50)
        cache.add([f"{n}" for n in numbers], np.zeros(50, dtype=np.int64), numbers[:, None])
    assert cache.lookup([f"{n}" for n in range(2000)])[:, 0].tolist() == list(range(2000))


# --------------------------------------------------------------------------- read once


def test_answers_are_read_once(kb: KnowledgeBase) -> None:
    rows = observed(kb, 0, 48)
    for teacher in ("t1", "t2"):
        kb.answers.append(rows.iloc[:40], half(rows.iloc[:40]), teacher=teacher)
    anew = another(kb)
    with scans() as (times, _, files):
        for _ in range(3):
            probs = anew.answers.probs(rows, "t1")
            anew.answers.probs(rows.iloc[10:20], "t1")
        assert np.isnan(probs[:, 0]).sum() == 8
        assert times["knowledge"] == files["knowledge"] == 1
        anew.answers.probs(rows, "t2")
        assert times["knowledge"] == files["knowledge"] == 2


def test_answers_appended_by_this_process_are_not_read_back(kb: KnowledgeBase) -> None:
    rows = observed(kb, 0, 48)
    kb.answers.append(rows.iloc[:1], half(rows.iloc[:1]), teacher="another")  # now there is a table
    inside = np.arange(48.0 * 3).reshape(48, 3)
    with scans() as (times, _, _):
        for first in range(0, 48, 12):
            part = rows.iloc[first : first + 12]
            kb.answers.append(part, half(part), teacher="t", features=inside[first : first + 12])
            kb.answers.append(part, half(part), teacher="mean")
            assert not np.isnan(kb.answers.probs(part, "t")).any()
            assert not np.isnan(kb.answers.probs(part, "mean")).any()
    assert times["knowledge"] == 0
    with scans() as (times, _, _):
        for _ in range(2):
            np.testing.assert_array_equal(kb.answers.features(rows, "t"), inside)
    assert times["knowledge"] == 1


def test_answers_of_another_process_are_read_from_the_new_files_only(kb: KnowledgeBase) -> None:
    rows = observed(kb, 0, 48)
    kb.answers.append(rows.iloc[:20], half(rows.iloc[:20]), teacher="t")
    anew = another(kb)
    assert np.isnan(anew.answers.probs(rows, "t")[:, 0]).sum() == 28
    kb.answers.append(rows.iloc[20:30], half(rows.iloc[20:30]), teacher="other")
    with scans() as (times, _, _):
        anew.answers.probs(rows, "t")
    assert times["knowledge"] == 0
    kb.answers.append(rows.iloc[20:30], half(rows.iloc[20:30]), teacher="t")
    with scans() as (times, materialised, files):
        assert np.isnan(anew.answers.probs(rows, "t")[:, 0]).sum() == 18
    assert (times["knowledge"], files["knowledge"], materialised["knowledge"]) == (1, 1, 10)


def test_two_processes_see_the_answers_of_each_other(kb: KnowledgeBase) -> None:
    rows, other = observed(kb, 0, 30), another(kb)
    for first in range(0, 30, 10):
        own_rows, other_rows = rows.iloc[first : first + 5], rows.iloc[first + 5 : first + 10]
        kb.answers.append(own_rows, half(own_rows), teacher="t")
        other.answers.append(other_rows, half(other_rows), teacher="t")
        assert kb.answers.append(other_rows, 1 - half(other_rows), teacher="t") == 0
    assert not np.isnan(kb.answers.probs(rows, "t")).any() and not np.isnan(other.answers.probs(rows, "t")).any()
    assert kb.tables.count_rows()["knowledge"] == 30


def test_an_old_answer_to_the_same_content_is_found(kb: KnowledgeBase) -> None:
    old, new = observed(kb, 0, 24), observed(kb, 24 * 100, 24)
    kb.answers.append(old, half(old), teacher="t")
    kb.answers.append(new.iloc[:12], half(new.iloc[:12]), teacher="t")
    again = new.assign(content_key=[*new["content_key"][:18], *old["content_key"][:6]])
    anew = another(kb)
    with scans() as (times, materialised, _):
        assert np.isnan(anew.answers.probs(again, "t")[:, 0]).tolist() == [False] * 12 + [True] * 6 + [False] * 6
        assert (times["knowledge"], materialised["knowledge"]) == (3, 12 + 6 + 6)
        anew.answers.probs(again, "t")
        assert times["knowledge"] == 3
    other = another(kb)
    said_of_old_rows = old.assign(content_key=[*again["content_key"][:18], *old["content_key"][18:]])
    other.answers.append(said_of_old_rows, half(old), teacher="t")
    assert not np.isnan(anew.answers.probs(again, "t")).any()
    assert not np.isnan(anew.answers.probs(old, "t")).any()


def test_rows_without_a_time_are_looked_up_in_the_whole_table(kb: KnowledgeBase) -> None:
    rows = observed(kb, 0, 24)
    kb.answers.append(rows, half(rows), teacher="t")
    anew = another(kb)
    assert not np.isnan(anew.answers.probs(rows[["content_key"]], "t")).any()
    with scans() as (times, _, _):
        anew.answers.probs(rows, "t")
    assert times["knowledge"] == 0


def test_compaction_and_a_restored_backup_lose_no_answer(kb: KnowledgeBase, tmp_path: Path) -> None:
    import shutil

    rows = observed(kb, 0, 48)
    kb.answers.append(rows.iloc[:10], half(rows.iloc[:10]), teacher="it's t")
    shutil.copytree(kb.root / "knowledge", tmp_path / "backup")
    kb.answers.append(rows.iloc[10:20], half(rows.iloc[10:20]), teacher="it's t")
    delta = another(kb).tables.open("knowledge")
    assert delta is not None
    delta.optimize.compact()
    assert np.isnan(kb.answers.probs(rows, "it's t")[:, 0]).sum() == 28
    shutil.rmtree(kb.root / "knowledge")
    shutil.copytree(tmp_path / "backup", kb.root / "knowledge")
    assert np.isnan(kb.answers.probs(rows, "it's t")[:, 0]).sum() == 38
    assert kb.answers.append(rows, half(rows), teacher="it's t") == 38


# --------------------------------------------------------------------------- age


def fill(kb: KnowledgeBase, days: int) -> None:
    """Days of an agent with one teacher that is watched every day and refreshed every third day."""
    for day in range(days):
        rows, end = observed(kb, 24 * day, 24), START + (day + 1) * DAY
        kb.answers.append(rows.iloc[:6], half(rows.iloc[:6]), teacher="llm")
        outcomes = rows[["observation_id", "observed_at"]].assign(known_at=rows["observed_at"] + DAY, action="stay")
        kb.tables.append("outcomes", outcomes, batch=f"{day}")
        spent, job = Spending(calls=6), f"watch {day}"
        kb.answers.append_spending(spent, job=job, purpose="watch", teacher="llm", version="llm", as_of=end, batch=job)
        kb.answers.append_unanswered(rows.iloc[:1], ["garbage"], teacher=f"fitted {day // 3}")
        champion, since = f"toy@{day // 3}", START + (day // 3) * 3 * DAY
        first_step = evidence.start("disagreement", champion, since=since, null_mean=0.1, average_run_length=100)
        step = evidence.advance(first_step, np.array([0.2]), start=end - DAY, end=end, rows=1)
        kb.journal.append_evidence(
            [
                EvidenceRows(
                    step=step,
                    observation_ids=("o",),
                    cluster_ids=(0,),
                    probabilities=(0.5,),
                    sampling_weights=(2.0,),
                    losses=(0.1,),
                )
            ]
        )
        kb.journal.append_verdict(verdict("watch", end, "no_drift"))
        if day % 3 == 2:
            kb.journal.append_verdict(verdict("gate", end, "refused"))
            kb.answers.append(rows, half(rows), teacher=f"fitted {day // 3}")
            kb.answers.append_questions(rows, np.ones(24), np.zeros(24, dtype=bool), job=f"r{day}", teacher="llm")
            kb.journal.append_weight_changes([change(f"r{day}", f"fitted {day // 3}", end)])


def verdict(kind: Any, as_of: Any, outcome: Any) -> Verdict:
    return Verdict(verdict_id=f"{kind} {as_of}", kind=kind, agent="toy", as_of=as_of, result=outcome, summary="s")


def change(job: str, version: str, as_of: Any) -> WeightChange:
    return WeightChange(
        job=job, version=version, as_of=as_of, teacher="llm", slice="", before=0.5, after=0.6, by="outcomes", reason="r"
    )


def run_watch_and_refresh(kb: KnowledgeBase, day: int) -> None:
    """Reads by a watch and a refresh after that many days."""
    now, last = START + day * DAY, (day - 1) // 3
    window = kb.window("current", now - 3 * DAY, now)
    rows = kb.read_observations(window)
    assert len(rows) == 72 and len(kb.read_labelled(window, known_by=now)) == 49
    for _ in range(3):
        assert (~np.isnan(kb.answers.probs(rows, "llm")[:, 0])).sum() == 18
        assert (~np.isnan(kb.answers.probs(rows, f"fitted {last}")[:, 0])).sum() == 24
    assert len(kb.read_newly_labelled(now - DAY, now, since=now - 3 * DAY)) == 24
    assert [step.end for step in kb.journal.latest_evidence()] == [now]
    assert len(kb.journal.evidence(f"toy@{last}", None, after=now - 3 * DAY)) == 3
    assert (
        kb.journal.last_refresh() == now
        and kb.journal.last_refresh_refused()
        and kb.journal.last_refresh(before=now) == now - 3 * DAY
    )
    assert kb.journal.verdict_at("watch", now) is not None and kb.journal.verdict(f"gate {now}") is not None
    assert kb.answers.spending(purpose="watch", after=now - DAY, until=now)["llm"].calls == 6
    assert kb.answers.spending(job=f"watch {day - 1}")["llm"].calls == 6
    assert len(kb.journal.weight_changes(f"fitted {last}")) == 1
    questions = kb.answers.questions(f"r{day - 1}", "llm")
    assert questions is not None and len(questions) == 24
    assert not kb.answers.unanswerable_keys(f"fitted {last}") and len(kb.answers.unanswered(f"fitted {last}")) == 3
    assert kb.newest_observed_at() == now - timedelta(hours=1) and kb.has_observations(now - DAY, now)


@pytest.mark.slow
def test_ten_times_the_history_reads_no_more_rows_and_files(tmp_path: Path) -> None:
    costs = []
    for days in (6, 60):
        kb = KnowledgeBase(make_config(), tmp_path / f"{days}")
        fill(kb, days)
        anew = another(kb)
        with scans() as (times, rows, files):
            run_watch_and_refresh(anew, days)
        costs.append((dict(times), dict(rows), dict(files)))
    young, old = costs
    assert old[1] == young[1]
    without = {table: count for table, count in old[2].items() if table != "knowledge"}
    assert without == {table: count for table, count in young[2].items() if table != "knowledge"}
    assert old[0] == young[0]
