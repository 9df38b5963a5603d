"""What pays: promotions by evidence, undo, the reckoning in the verdict, and gains, on the real path.

The toy's world turns over on day 24. The challenger was made on day 40 and its gate could not tell, so it stays in the
pool; the champion of day 20 is much worse by then.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import stillhouse
from stillhouse import cli, config
from stillhouse.certifying.run import verify
from stillhouse.champion import open_registry
from stillhouse.drift.decide import decide_from_evidence
from stillhouse.evaluate import gate
from stillhouse.knowledge import KnowledgeBase
from stillhouse.promoting import promote_version
from stillhouse.quality import Policy
from stillhouse.records import ChampionChoice, PoolState, Reckoning, Verdict
from stillhouse.shown import escape_markdown
from stillhouse.variant import Variant
from stillhouse.watching import payoff, pool, promotions, run
from stillhouse.watching.publishing import format_pool, format_reckoning
from stillhouse.watching.timeline import read_timeline
from stillhouse.watching.window import get_window, open_window

Day = Callable[[int], datetime]
Base = Callable[..., KnowledgeBase]

_MADE: dict[str, Path] = {}


def _edit(agents: Path, *changes: tuple[str, str]) -> None:
    file = agents / "toy.yaml"
    text = file.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    file.write_text(text)


@pytest.fixture
def base(
    toy_base: Base, agents: Path, day: Day, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> KnowledgeBase:
    """A champion of day 20, data to day 58, and a challenger of day 40 whose gate was inconclusive; by accuracy."""
    _edit(agents, ("quality: {measure: auc}", "quality: {measure: accuracy}"))
    if "home" not in _MADE:
        toy_base(58)
        judge = gate.judge
        with monkeypatch.context() as patch:
            patch.setattr(gate, "judge", lambda c: judge(c).model_copy(update={"result": "inconclusive"}))
            verdict = stillhouse.refresh("toy", as_of=day(40), trigger="manual", cause="drift")
        assert verdict.result == "inconclusive"
        _MADE["home"] = Path(shutil.copytree(config.home(), tmp_path_factory.mktemp("made") / "home"))
    else:
        home = config.home()
        shutil.rmtree(home)
        shutil.copytree(_MADE["home"], home)
    return KnowledgeBase(config.load("toy"))


def _champion() -> str:
    return str(open_registry("toy").champion())


def _choice(verdict: Verdict) -> ChampionChoice:
    return ChampionChoice.model_validate(verdict.evidence["choice"])


def test_an_inconclusive_challenger_becomes_champion_by_evidence(base: KnowledgeBase, day: Day, tmp_path: Path) -> None:
    first = _champion()
    calm = stillhouse.watch("toy", day(44))  # four complete blocks prove nothing
    assert _choice(calm).action == "keep" and _champion() == first
    verdict = stillhouse.watch("toy", day(57))
    choice = _choice(verdict)
    assert (choice.action, verdict.response) == ("promote", "reuse") and verdict.refresh_mode is None
    assert _champion() == choice.member != first and str(open_registry("toy").previous()) == first
    (promotion,) = base.journal.verdicts("promotion")
    assert (promotion.result, promotion.as_of) == ("promoted", verdict.as_of)
    decided_on: Any = promotion.evidence["pool"]
    assert decided_on["watch"] == verdict.verdict_id and decided_on["evidence"][0]["member"] == choice.member
    assert decide_from_evidence(verdict.evidence) == verdict
    assert promotions.complete_promotion("toy") is None and len(base.journal.verdicts("promotion")) == 1
    state = PoolState.model_validate(verdict.evidence["pool"])
    assert [member.role for member in state.members] == ["champion", "challenger"]
    life = read_timeline(base)
    assert [reign.champion for reign in life.reigns] == [first, choice.member]
    assert life.reigns[0].end == life.reigns[1].start == verdict.as_of
    assert [(act.kind, act.result) for act in life.acts] == [
        ("bootstrap", "promoted"),
        ("by hand", "inconclusive"),
        ("reuse", "promoted"),
    ]
    curves = dict(life.quality)
    assert curves["champion"] == curves["never refreshed"][: len(curves["champion"])]
    assert 0.5 < curves["champion"][0][1] <= 1.0 and min(value for _, value in curves["champion"]) < 0.5
    assert len(life.teachers) == 1 and life.measure == "accuracy" and life.steps
    result = CliRunner().invoke(cli.app, ["timeline", "toy", "--file", str(tmp_path / "life.png")])
    assert (result.exit_code, (tmp_path / "life.png").read_bytes()[:4]) == (0, b"\x89PNG")
    page = format_pool(verdict)
    assert page.startswith("## Pool") and escape_markdown(choice.member) in page and "| yes |" in page
    assert format_reckoning(verdict) == ""  # the agent file asks for alarms


@pytest.mark.slow
def test_a_member_that_is_worse_on_a_slice_does_not_become_champion(
    base: KnowledgeBase, day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, make_policy = _champion(), payoff.make_policy

    def swap_in_the_north(variant: Variant, actions: Sequence[str]) -> Policy:
        """There the old champion is right and its challenger is wrong."""
        policy = make_policy(variant, actions)

        def predict(rows: pd.DataFrame) -> Any:
            probs = policy(rows)
            north = (rows["place"] == "north").to_numpy()
            probs[north] = probs[north, ::-1]
            return probs

        return predict

    monkeypatch.setattr(payoff, "make_policy", swap_in_the_north)
    verdict = stillhouse.watch("toy", day(57))
    choice = _choice(verdict)
    assert choice.action == "keep" and _champion() == first and "on place=north" in choice.text
    assert choice.reasons[0].failed and choice.reasons[0].measure == "accuracy:place=north"
    assert verify("toy", verdict.verdict_id).identical


@pytest.mark.slow
def test_a_watch_that_is_killed_before_its_promotion_is_completed_once(
    base: KnowledgeBase, day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _champion()

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "carry_out", killed)
        with pytest.raises(KeyboardInterrupt):
            stillhouse.watch("toy", day(57))
    assert _champion() == first and base.journal.verdicts("promotion") == []
    stillhouse.watch("toy", day(57))
    promoted = _champion()
    (promotion,) = base.journal.verdicts("promotion")
    assert promoted != first and promotion.evidence["champion"] == promoted
    stillhouse.watch("toy", day(58))
    assert _champion() == promoted and len(base.journal.verdicts("promotion")) == 1


@pytest.mark.slow
def test_a_harmful_promotion_is_undone(base: KnowledgeBase, agents: Path, day: Day) -> None:
    first = _champion()
    challenger = str(open_registry("toy").pool_versions()[-1].model)
    promote_version("toy", int(challenger.rpartition("@")[2]), "good")  # on day 58, by the clock
    for verdict in base.journal.verdicts("promotion"):
        assert verdict.result == "promoted"
    _record_earlier_promotions(base, day, first, challenger)
    verdict = stillhouse.watch("toy", day(57))
    choice = _choice(verdict)
    assert (choice.action, choice.member, verdict.response) == ("undo", challenger, "reuse"), choice.reasons
    assert _champion() == challenger
    assert base.journal.verdicts("promotion")[-1].result == "rolled_back" or any(
        one.result == "rolled_back" for one in base.journal.verdicts("promotion")
    )


def _record_earlier_promotions(base: KnowledgeBase, day: Day, first: str, challenger: str) -> None:
    """The bad old model became champion again on day 38, instead of the good one."""
    registry = open_registry("toy")
    registry.promote(first.rpartition("@")[2])
    delta = base.root / "verdicts"
    gates = base.journal.verdicts("gate")
    shutil.rmtree(delta)
    for verdict in gates:
        base.journal.append_verdict(verdict)
    base.journal.append_verdict(
        Verdict(
            verdict_id="bad",
            kind="promotion",
            agent="toy",
            as_of=day(38),
            result="promoted",
            summary="a mistake",
            evidence={"champion": first, "before": challenger},
        )
    )


@pytest.mark.slow
def test_where_decisions_change_the_outcomes_the_pool_promotes_nobody(
    base: KnowledgeBase, agents: Path, day: Day
) -> None:
    first = _champion()
    _edit(agents, ("delay: 1d}", "delay: 1d, depend_on_decision: true}"))
    verdict = stillhouse.watch("toy", day(57))
    assert _choice(verdict).action == "keep" and _champion() == first
    assert any("depend_on_decision" in reason.text for reason in _choice(verdict).reasons)


@pytest.mark.slow
def test_a_person_must_approve_if_the_agent_file_says_so(base: KnowledgeBase, agents: Path, day: Day) -> None:
    first = _champion()
    _edit(agents, ("promotion: {", "promotion: {approval: manual, "))
    verdict = stillhouse.watch("toy", day(57))
    assert verdict.response == "reuse" and _champion() == first
    (waiting,) = base.journal.verdicts("promotion")
    assert waiting.result == "awaiting_approval" and str(open_registry("toy").challenger()) == _choice(verdict).member


@pytest.mark.slow
def test_the_reckoning_reuses_a_proven_member_and_its_gain_is_measured(
    base: KnowledgeBase, agents: Path, day: Day
) -> None:
    dear = "{update: 100, redistil_warm: 100, redistil: 100, recalibrate: 100}"
    _edit(agents, ("  cooldown: 3d", f"  cooldown: 3d\n  policy: payoff\n  every: 1d\n  payoff: {{prices: {dear}}}"))
    first = _champion()
    verdict = stillhouse.watch("toy", day(46))
    reckoning = Reckoning.model_validate(verdict.evidence["reckoning"])
    assert (reckoning.chosen, verdict.response) == ("reuse", "reuse"), reckoning.text
    assert _champion() == reckoning.model != first
    (promotion,) = base.journal.verdicts("promotion")
    decided_on: Any = promotion.evidence["pool"]
    assert decided_on["comparison"]["rows"] >= 100 and decided_on["reckoning"]["chosen"] == "reuse"
    assert decide_from_evidence(verdict.evidence) == verdict
    assert "## What would pay" in format_reckoning(verdict) and "**chosen**" in format_reckoning(verdict)
    later = stillhouse.watch("toy", day(54))
    (gain,) = payoff.realised_gains(base)
    assert (gain.response, gain.champion, gain.replaced) == ("reuse", reckoning.model, first)
    assert gain.realised > 0.2 and gain.predicted is not None and gain.predicted > 0.05
    assert gain.as_of == day(46) and gain.rows == 120 * 7
    state = PoolState.model_validate(later.evidence["pool"])
    assert state.realised == (gain,) and escape_markdown(gain.champion) in format_pool(later)
    registry = open_registry("toy")
    run_id = registry.runs.open_watch(_champion(), _since(later))
    metrics = registry.client.get_run(run_id).data.metrics
    assert metrics["gain.realised"] == pytest.approx(gain.realised)
    assert f"pool.{first.replace('@', ':')}.accuracy" in metrics


def _since(verdict: Verdict) -> datetime:
    from stillhouse.records import drift_report, evidence_steps

    report = drift_report(verdict)
    assert report is not None
    return min((step.since for step in evidence_steps(verdict)), default=report.reference.end)


def test_the_situation_says_what_is_impossible(base: KnowledgeBase, agents: Path, day: Day) -> None:
    _edit(
        agents,
        ("  cooldown: 3d", "  cooldown: 3d\n  policy: payoff\n  every: 1d\n  payoff: {max_trainings_per_month: 1}"),
        ("max_bytes: 100_000", "max_bytes: 10"),
    )
    _, window = open_window("toy", day(46))
    watched = get_window("toy", window)
    scored = pool.score_pool(watched, day(46))
    state = pool.read_pool_state(watched, scored)
    assert state is not None
    situation = payoff.build_situation(watched, day(46), state, scored)
    assert situation is not None
    impossible = situation.impossible
    assert "max_trainings_per_month" in impossible["redistil"] and "recalibrate" not in impossible
    assert "above the budget of 10" in impossible[scored.members[1].model]
    assert situation.block == situation.step == timedelta(days=1) / payoff.WEEK
    assert situation.corrected is not None and len(situation.corrected.known().times) == 6
    own = situation.own.known()
    assert len(own.times) == 31 and 0.5 < own.losses[-5:].mean() < 1  # the world has turned over
