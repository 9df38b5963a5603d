"""An alarm starts one refresh, whatever the clock says; a refused challenger closes it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from flows.refresh import refresh
from flows.watch import watch
from stillhouse.champion import open_registry
from stillhouse.records import drift_report, evidence_steps
from stillhouse.refreshing.opening import find_answering_verdict
from stillhouse.refreshing.session import open_session, request_refresh
from tasks.ingesting import live


def find_answer(cause: str, as_of):
    """Return the verdict that answers an alarm of that watch, or None."""
    request = request_refresh("toy", as_of, "drift", cause, "fit", "redistil")
    return find_answering_verdict(open_session(request), request)


pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.mark.slow
def test_alarm_is_answered_once_while_the_clock_stands_still(toy_base, day, agents: Path) -> None:
    """Two watches without new data start one refresh; its refused challenger closes the alarm."""
    base = toy_base(28)
    file = agents / "toy.yaml"
    file.write_text(
        file.read_text().replace("max_bytes: 100_000", "max_bytes: 100").replace("cooldown: 3d", "cooldown: 0d")
    )

    first = watch.fn(agent="toy", on_drift="refresh")  # "now" is just after the newest observation
    assert first.response != "hold", first.summary
    gate = base.journal.verdicts()[-1]
    assert (gate.kind, gate.result, gate.as_of) == ("gate", "refused", first.as_of)
    made = open_registry("toy").versions()

    for as_of in (None, first.as_of + timedelta(minutes=7)):  # the clock stands still, or only the wall clock advances
        again = watch.fn(agent="toy", as_of=as_of, on_drift="refresh")
        assert (again.result, again.response) == ("cooling_down", "hold"), again.summary
        assert "nothing was observed since the last refresh" in again.summary
        assert all(step.since == first.as_of and not step.looks for step in evidence_steps(again))  # started anew
        report = drift_report(again)
        assert report is not None and report.disagreement is not None
        assert report.disagreement.rows >= drift_report(first).disagreement.rows - 5  # what was audited is not lost

    # a late event: the gate has already judged its refresh
    late = refresh.fn(agent="toy", as_of=day(29), trigger="drift", cause=first.verdict_id)
    assert late == gate and open_registry("toy").versions() == made
    assert [v.result for v in base.journal.verdicts() if v.kind == "gate"] == ["promoted", "refused"]
    assert find_answer("no such verdict", day(29)) is None and find_answer(gate.verdict_id, day(29)) is None
    assert find_answer(first.verdict_id, first.as_of) is None  # its own refresh continues where it was killed

    live.fn("toy", day(28), day(29))
    after = watch.fn(agent="toy", as_of=day(29))
    assert after.response != "hold"  # new rows allow a new alarm
    assert find_answer(after.verdict_id, day(29)) is None
