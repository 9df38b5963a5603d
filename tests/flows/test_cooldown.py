"""Through the flows: an alarm is answered once, wherever the clock stands, and a refused challenger closes it."""

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
from tasks.living import live


def answered(cause: str, as_of):
    """What a refresh that was asked for by that watch would be told."""
    request = request_refresh("toy", as_of, "drift", cause, "fit", "redistil")
    return find_answering_verdict(open_session(request), request)


pytestmark = pytest.mark.usefixtures("prefect_server")


def test_an_alarm_is_answered_once_although_the_clock_stands_still(lived, day, agents: Path) -> None:
    """Two watches without new data start one refresh; its refused challenger closes the alarm."""
    base = lived(28)
    file = agents / "toy.yaml"
    file.write_text(
        file.read_text().replace("max_bytes: 100_000", "max_bytes: 100").replace("cooldown: 3d", "cooldown: 0d")
    )

    first = watch.fn(agent="toy", on_drift="refresh")  # "now" is just after the newest observation
    assert first.response != "hold", first.summary
    gate = base.journal.verdicts()[-1]
    assert (gate.kind, gate.result, gate.as_of) == ("gate", "refused", first.as_of)
    made = open_registry("toy").versions()

    for as_of in (None, first.as_of + timedelta(minutes=7)):  # the clock stands still; or the wall's goes on alone
        again = watch.fn(agent="toy", as_of=as_of, on_drift="refresh")
        assert (again.result, again.response) == ("cooling_down", "hold"), again.summary
        assert "nothing was observed since the last refresh" in again.summary
        assert all(step.since == first.as_of and not step.looks for step in evidence_steps(again))  # begun anew
        kept = drift_report(again)
        assert kept is not None and kept.disagreement is not None
        assert kept.disagreement.rows >= drift_report(first).disagreement.rows - 5  # what was audited is not lost

    # an event of before: the refresh that it asks for was judged already
    late = refresh.fn(agent="toy", as_of=day(29), trigger="drift", cause=first.verdict_id)
    assert late == gate and open_registry("toy").versions() == made
    assert [v.result for v in base.journal.verdicts() if v.kind == "gate"] == ["promoted", "refused"]
    assert answered("no such verdict", day(29)) is None and answered(gate.verdict_id, day(29)) is None
    assert answered(first.verdict_id, first.as_of) is None  # its own: it goes on where it was killed

    live.fn("toy", day(28), day(29))
    anew = watch.fn(agent="toy", as_of=day(29))
    assert anew.response != "hold"  # new rows: it may be asked again
    assert answered(anew.verdict_id, day(29)) is None
