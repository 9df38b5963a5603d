"""Windows by number of rows, since a promotion and sampled: they read the same rows after later changes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from pydantic import ValidationError

from stillhouse.config import AgentConfig
from stillhouse.errors import WindowError
from stillhouse.knowledge import KnowledgeBase, sampling, windows
from stillhouse.records import Verdict, Window
from tests.knowledge.parts_for_tests import START, make_config, make_rows, read_unlabelled

HOUR = timedelta(hours=1)


def with_windows(**changes: Any) -> AgentConfig:
    raw = make_config().model_dump()
    raw["windows"] |= changes
    raw["observations"]["min_rows"] = 5
    return AgentConfig.model_validate(raw)


@pytest.fixture
def kb(tmp_path: Path) -> KnowledgeBase:
    """200 hours with one observation per hour, in four files, the newest rows first."""
    base = KnowledgeBase(with_windows(), tmp_path / "kb")
    for part in (3, 2, 1, 0):
        base.append_observations(make_rows(50 * part, 50), batch=f"part {part}")
    return base


def outcomes(numbers: range, action: str = "move", known_after: timedelta = HOUR) -> pd.DataFrame:
    rows = make_rows(numbers.start, len(numbers))[["observation_id", "observed_at"]]
    return rows.assign(known_at=rows["observed_at"] + known_after, action=action)


def bad(base: KnowledgeBase, *numbers: int, batch: str) -> None:
    rows = pd.concat([make_rows(number, 1) for number in numbers])[["observation_id", "observed_at"]]
    base.tables.append("quarantine", rows.assign(reasons=[["nonsense"]] * len(rows)), batch=batch)


def sample(base: KnowledgeBase, size: int, seed: int = 7) -> Window:
    window = base.window("w", START, START + 200 * HOUR)
    return window.model_copy(update={"sample": size, "seed": seed})


# --------------------------------------------------------------------------- sampled


def test_a_sample_has_the_smallest_hashes_outside_quarantine(kb: KnowledgeBase) -> None:
    bad(kb, *range(0, 100, 2), batch="bad")
    ids = np.array([f"o{i:04d}" for i in range(200) if i >= 100 or i % 2], dtype=object)
    keys = sampling.keyed_hash(ids, 7)
    actual = kb.read_observations(sample(kb, 20))
    assert actual["observation_id"].tolist() == sorted(ids[np.argsort(keys)[:20]])
    assert actual.columns.tolist() == kb.read_observations(kb.window("w", START, START + 9 * HOUR)).columns.tolist()
    assert set(kb.read_observations(sample(kb, 20, seed=8))["observation_id"]) != set(actual["observation_id"])


def siphash(key: bytes, message: bytes) -> int:
    """SipHash-2-4, written from Aumasson and Bernstein 2012, §2."""
    mask = 2**64 - 1
    k = [int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")]
    constants = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
    v = [constant ^ k[i % 2] for i, constant in enumerate(constants)]

    def rotated(x: int, by: int) -> int:
        return ((x << by) | (x >> (64 - by))) & mask

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = (v[0] + v[1]) & mask
            v[1] = rotated(v[1], 13) ^ v[0]
            v[0] = rotated(v[0], 32)
            v[2] = (v[2] + v[3]) & mask
            v[3] = rotated(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & mask
            v[3] = rotated(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & mask
            v[1] = rotated(v[1], 17) ^ v[2]
            v[2] = rotated(v[2], 32)

    padded = message + bytes(7 - len(message) % 8) + bytes([len(message) % 256])
    for start in range(0, len(padded), 8):
        word = int.from_bytes(padded[start : start + 8], "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def mixed(x: int) -> int:
    """The last step of SplitMix64 (Steele, Lea and Flood 2014), a bijection."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x = ((x ^ (x >> shift)) * factor) % 2**64
    return x


def test_the_hash_is_siphash_so_that_samples_are_reproducible() -> None:
    ids = ["", "o1", "o0001", "a rather long observation's id, São Paulo"]
    for seed in (0, 7, 2**64 - 1):
        expected = [mixed(siphash(f"{seed:016x}".encode(), name.encode())) for name in ids]
        assert sampling.keyed_hash(ids, seed).tolist() == expected


def test_a_sample_larger_than_the_window_is_the_window(kb: KnowledgeBase) -> None:
    bad(kb, 3, batch="bad")
    all_rows = kb.read_observations(kb.window("w", START, START + 200 * HOUR))
    pd.testing.assert_frame_equal(kb.read_observations(sample(kb, 1000)), all_rows)
    nothing = sample(kb, 5).model_copy(update={"end": START})
    assert kb.read_observations(nothing).empty and list(kb.read_observations(nothing)) == list(all_rows)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_neither_batches_nor_order_nor_copies_change_a_sample(size: int) -> None:
    rng = np.random.default_rng(0)
    rows = make_rows(0, 500).assign(content_key="a")
    later = rows.iloc[::5].assign(content_key="b", observed_at=lambda r: r["observed_at"] + HOUR)
    twins = rows.iloc[::7].assign(content_key="0")
    together = pd.concat([rows, later, twins], ignore_index=True)

    def drawn(frame: pd.DataFrame, batch: int) -> pd.DataFrame:
        table = pa.Table.from_pandas(frame, preserve_index=False)
        actual = sampling.sample_by_hash(
            table.to_batches(max_chunksize=batch), size, 3, pa.array(["o0009"], pa.string())
        )
        return actual.to_pandas().sort_values("observation_id", ignore_index=True)

    full_sample = drawn(together, 10_000)
    assert (
        len(full_sample) == size
        and full_sample["observation_id"].is_unique
        and "o0009" not in set(full_sample["observation_id"])
    )
    for batch in (7, 100):
        shuffled = together.iloc[rng.permutation(len(together))]
        pd.testing.assert_frame_equal(drawn(shuffled, batch), full_sample)
    expected = together.sort_values(["observed_at", "content_key"]).drop_duplicates("observation_id")
    pd.testing.assert_frame_equal(
        full_sample,
        expected[expected["observation_id"].isin(full_sample["observation_id"])].sort_values(
            "observation_id", ignore_index=True
        ),
    )


def test_a_sample_is_uniform(kb: KnowledgeBase) -> None:
    """Every row is in a tenth of the samples: χ² over 300 seeds is within its 0.999 quantile (199 d.o.f.)."""
    ids = np.array([f"o{i:04d}" for i in range(200)], dtype=object)
    counts = np.zeros(200)
    for seed in range(300):
        counts[np.argsort(sampling.keyed_hash(ids, seed))[:20]] += 1
    assert ((counts - 30) ** 2 / (30 * 0.9)).sum() < 268


def test_labels_are_those_of_the_sampled_rows(kb: KnowledgeBase) -> None:
    kb.tables.append("outcomes", outcomes(range(120)), batch="a")
    kb.tables.append("outcomes", outcomes(range(60), "stay", known_after=2 * HOUR), batch="corrected")
    window, known_by = sample(kb, 40), START + 500 * HOUR
    unsampled = window.model_copy(update={"sample": None, "seed": None})
    ids = set(kb.read_observations(window)["observation_id"])
    labelled, unlabelled = kb.read_labelled(window, known_by), read_unlabelled(kb, window, known_by)
    assert set(labelled["observation_id"]) | set(unlabelled["observation_id"]) == ids
    for sampled_rows, all_rows in (
        (labelled, kb.read_labelled(unsampled, known_by)),
        (unlabelled, read_unlabelled(kb, unsampled, known_by)),
    ):
        expected = all_rows[all_rows["observation_id"].isin(ids)].reset_index(drop=True)
        assert len(sampled_rows)
        pd.testing.assert_frame_equal(sampled_rows, expected)


def test_a_window_reads_the_same_rows_later(kb: KnowledgeBase) -> None:
    """Later rows, outcomes, quarantines and compactions change nothing."""
    kb.tables.append("outcomes", outcomes(range(0, 150, 1)), batch="a")
    bad(kb, 11, 12, batch="bad")
    taken = [
        sample(kb, 30),
        windows.newest_window(kb, "w", 60, START + 200 * HOUR),
        kb.window("w", START, START + 90 * HOUR),
    ]
    before = [(kb.read_observations(w), kb.read_labelled(w, START + 900 * HOUR)) for w in taken]

    kb.append_observations(make_rows(0, 30).assign(observation_id=[f"new{i}" for i in range(30)]), batch="late")
    kb.tables.append("outcomes", outcomes(range(200), "stay", known_after=9 * HOUR), batch="late")
    bad(kb, *range(20, 60), batch="late")
    for table in ("observations", "outcomes", "quarantine"):
        done = DeltaTable(str(kb.root / table)).optimize.compact()
        assert done["numFilesRemoved"] >= 2
    kb.append_observations(make_rows(200, 50), batch="newer")

    for window, (observed, labelled) in zip(taken, before, strict=True):
        reread = Window.model_validate_json(window.model_dump_json())
        pd.testing.assert_frame_equal(kb.read_observations(reread), observed)
        pd.testing.assert_frame_equal(kb.read_labelled(reread, START + 900 * HOUR), labelled)
    changed = kb.read_observations(sample(kb, 30))
    assert changed["observation_id"].tolist() != before[0][0]["observation_id"].tolist()


def test_compaction_does_not_change_a_sample_of_the_newest_tables(kb: KnowledgeBase) -> None:
    before = kb.read_observations(sample(kb, 30))
    DeltaTable(str(kb.root / "observations")).optimize.compact()
    pd.testing.assert_frame_equal(kb.read_observations(sample(kb, 30)), before)


def test_a_sample_needs_a_seed() -> None:
    for wrong in ({"sample": 5}, {"seed": 5}, {"sample": 0, "seed": 1}):
        with pytest.raises(ValidationError):
            Window(name="w", start=START, end=START + HOUR, **wrong)
    window = windows.sample_window(Window(name="w", start=START, end=START + HOUR), 5, "toy")
    assert "a sample of at most 5 rows (seed " in str(window)
    others = [
        windows.sample_window(window.model_copy(update=change), 5, agent).seed
        for change, agent in (({}, "boy"), ({"end": START + 2 * HOUR}, "toy"))
    ]
    assert len({window.seed, *others}) == 3
    assert windows.sample_window(window, 9, "toy").seed == window.seed


# --------------------------------------------------------------------------- by count


@pytest.mark.parametrize("rows", [1, 2, 37, 199])
def test_the_newest_rows_before_a_time(kb: KnowledgeBase, rows: int) -> None:
    window = windows.newest_window(kb, "current", rows, START + 199 * HOUR)
    assert kb.read_observations(window)["temp"].tolist() == list(range(199 - rows, 199))
    assert f"the newest {rows:,} rows" in str(window)


def test_fewer_rows_than_requested_are_all_rows(kb: KnowledgeBase) -> None:
    window = windows.newest_window(kb, "current", 5000, START + 10 * HOUR)
    assert kb.read_observations(window)["temp"].tolist() == list(range(10))


def test_quarantined_and_repeated_rows_do_not_count(kb: KnowledgeBase) -> None:
    bad(kb, 195, 190, batch="bad")
    kb.append_observations(make_rows(196, 4), batch="again")
    window = windows.newest_window(kb, "current", 10, START + 200 * HOUR)
    assert kb.read_observations(window)["temp"].tolist() == [188, 189, 191, 192, 193, 194, 196, 197, 198, 199]


def test_rows_of_the_same_time_are_in_the_window_together(kb: KnowledgeBase) -> None:
    kb.append_observations(make_rows(300, 6).assign(observed_at=pd.Timestamp(START + 199 * HOUR)), batch="at once")
    assert len(kb.read_observations(windows.newest_window(kb, "current", 3, START + 200 * HOUR))) == 7


def test_the_newest_window_without_observations(kb: KnowledgeBase, tmp_path: Path) -> None:
    for base in (kb, KnowledgeBase(make_config(), tmp_path / "empty")):
        with pytest.raises(WindowError, match="agent 'toy' has no observations before 2013-01-01 00:00"):
            windows.newest_window(base, "current", 10, START)


# --------------------------------------------------------------------------- since the promotion


def verdict(kind: str, outcome: str, hours: int, **evidence: Any) -> Verdict:
    return Verdict.model_validate(
        {
            "verdict_id": f"{kind}{outcome}{hours}",
            "kind": kind,
            "agent": "toy",
            "as_of": START + hours * HOUR,
            "result": outcome,
            "summary": "",
            "evidence": evidence,
        }
    )


def since_promotion(kb: KnowledgeBase, hours: int, **changes: Any) -> Window:
    config = with_windows(current={"since": "promotion"} | changes)
    return windows.current_window(KnowledgeBase(config, kb.root), START + hours * HOUR, "toy@1", START + 20 * HOUR)


def test_window_since_the_gate_promoted_the_champion(kb: KnowledgeBase) -> None:
    kb.journal.append_verdict(verdict("gate", "promoted", 10))
    kb.journal.append_verdict(verdict("gate", "promoted", 20))
    kb.journal.append_verdict(verdict("gate", "refused", 40))
    kb.journal.append_verdict(verdict("promotion", "promoted", 45, champion="toy@2"))
    window = since_promotion(kb, 50)
    assert (window.start, window.end) == (START + 20 * HOUR, START + 50 * HOUR)
    assert "since toy@1 was promoted" in str(window)
    short = since_promotion(kb, 50, at_most="6h")
    assert short.start == START + 44 * HOUR and "2013-01-01 20:00" in str(short)
    assert since_promotion(kb, 50, at_most="60h") == window


def test_window_since_a_manual_promotion_or_rollback(kb: KnowledgeBase) -> None:
    kb.journal.append_verdict(verdict("gate", "awaiting_approval", 20))
    kb.journal.append_verdict(verdict("promotion", "promoted", 30, champion="toy@1"))
    kb.journal.append_verdict(verdict("promotion", "promoted", 33, champion="toy@2"))
    assert since_promotion(kb, 50).start == START + 30 * HOUR
    kb.journal.append_verdict(verdict("promotion", "rolled_back", 40, champion="toy@1"))
    assert since_promotion(kb, 50).start == START + 40 * HOUR


def test_an_unknown_or_future_promotion(kb: KnowledgeBase) -> None:
    with pytest.raises(WindowError, match="no verdict says when toy@1 was promoted"):
        since_promotion(kb, 50)
    kb.journal.append_verdict(verdict("gate", "promoted", 20))
    with pytest.raises(WindowError, match="is empty at 2013-01-01 20:00"):
        since_promotion(kb, 20)
    config = with_windows(current="since_promotion")
    with pytest.raises(WindowError, match="there is no champion yet"):
        windows.current_window(KnowledgeBase(config, kb.root), START + 50 * HOUR, None, None)


def test_the_current_window_of_the_agent_file(kb: KnowledgeBase) -> None:
    as_of = START + 100 * HOUR
    by_length = windows.current_window(kb, as_of, None, None)
    assert by_length == kb.window("current", as_of - timedelta(days=7), as_of)
    config = with_windows(current={"rows": 300}, sample=200)
    both = windows.current_window(KnowledgeBase(config, kb.root), as_of, None, None)
    assert both.start == START and both.sample == 200 and both.seed is not None
