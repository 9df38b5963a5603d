"""The watch flow with current windows by row count, since the promotion, and sampled."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from prefect.client.orchestration import get_client

from flows.promote import promote
from flows.watch import watch
from stillhouse.champion import open_registry
from stillhouse.drift.decide import decide_from_evidence
from stillhouse.errors import WindowError
from stillhouse.records import Verdict, drift_report
from stillhouse.shown import escape_markdown
from stillhouse.watching.window import open_window
from tasks.ingesting import live
from tests.flows import toy

pytestmark = pytest.mark.usefixtures("prefect_server")


def set_current_window(agents: Path, setting: str) -> None:
    text = (agents / "toy.yaml").read_text()
    assert "current: 4d" in text
    (agents / "toy.yaml").write_text(text.replace("current: 4d", f"current: {setting}"))


def window_reason(verdict: Verdict) -> str:
    assert decide_from_evidence(verdict.evidence) == verdict
    (reason,) = [reason for reason in verdict.reasons if reason.measure == "window"]
    with get_client(sync_client=True) as client:
        artifacts = sorted(client.read_artifacts(), key=lambda artifact: artifact.created)
    assert escape_markdown(reason.text) in {artifact.key: artifact.data for artifact in artifacts}["watch-toy"]
    return reason.text


@pytest.mark.slow
def test_sampled_window_since_the_promotion(toy_base, day, agents: Path) -> None:
    set_current_window(agents, "since_promotion, sample: 200")
    base = toy_base(24)
    verdict = watch(agent="toy", as_of=day(24))
    text = window_reason(verdict)
    assert f"since {open_registry('toy').champion()} was promoted" in text
    assert "a sample of at most 200 rows (seed " in text and text.endswith("200 of its rows")

    report = drift_report(verdict)
    assert report is not None and (report.current_rows, report.current.start) == (200, day(20))
    rows = base.read_observations(report.current)
    assert len(rows) == 200 and rows["observed_at"].between(day(20), day(24), inclusive="left").all()
    everything = base.read_observations(report.current.model_copy(update={"sample": None, "seed": None}))
    assert len(everything) == 4 * toy.PER_DAY
    assert report.quality is not None and report.quality.rows == len(base.read_labelled(report.current, day(24)))

    live.fn("toy", day(24), day(26))  # a pinned window does not change
    pd.testing.assert_frame_equal(base.read_observations(report.current), rows)
    promoted = promote(agent="toy", version=int(open_registry("toy").versions()[0].version), reason="by hand")
    assert promoted.as_of >= day(25)  # by the agent's clock, which is that of the data
    assert open_window("toy", promoted.as_of + pd.Timedelta(hours=1))[1].start == promoted.as_of


@pytest.mark.slow
def test_window_of_the_newest_rows(toy_base, day, agents: Path) -> None:
    set_current_window(agents, "{rows: 300}")
    base = toy_base(24)
    verdict = watch(agent="toy", as_of=day(24))
    assert "the newest 300 rows" in window_reason(verdict)
    report = drift_report(verdict)
    assert report is not None and report.current_rows == 300 and report.current.end == day(24)
    screens = open_registry("toy").baseline(open_registry("toy").champion()).screens
    assert abs(screens.block_length - 300 / toy.PER_DAY * pd.Timedelta(days=1)) < pd.Timedelta(hours=1)
    assert base.read_observations(report.current)["observed_at"].iloc[0] == day(24) - pd.Timedelta(days=2.5)


def test_window_without_a_promotion_or_rows_is_refused(day, agents: Path) -> None:
    set_current_window(agents, "{since: promotion, at_most: 2d}")
    live.fn("toy", day(0), day(20))
    with pytest.raises(WindowError, match="there is no champion yet"):
        watch(agent="toy", as_of=day(20))
    text = (agents / "toy.yaml").read_text()
    (agents / "toy.yaml").write_text(text.replace("{since: promotion, at_most: 2d}", "{rows: 300}"))
    with pytest.raises(WindowError, match="agent 'toy' has no observations before 2023-12-31"):
        watch(agent="toy", as_of=day(-1))


def test_window_of_a_fixed_length_gives_no_window_reason(toy_base, day) -> None:
    toy_base(24)
    verdict = watch(agent="toy", as_of=day(24))
    assert "window" not in {reason.measure for reason in verdict.reasons}
    report = drift_report(verdict)
    assert report is not None and (report.current.start, report.current.sample) == (day(20), None)
