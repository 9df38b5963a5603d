"""Problems by component."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from stillhouse.runtime.status import Problem, merge_problems


def test_an_open_problem_takes_precedence_over_a_later_one_that_is_over() -> None:
    now = datetime.now(UTC)
    over = Problem(since=now, at=now, text="over", over_at=now)
    old = Problem(since=now, at=now - timedelta(hours=1), text="old")
    assert merge_problems({"spool": over}, {"spool": old, "registry": over}) == {"spool": old, "registry": over}
    assert merge_problems({"spool": old}, {"spool": over}) == {"spool": old} and merge_problems() == {}
