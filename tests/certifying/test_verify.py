"""Verdicts that are computed again: identical, or with what differs by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import stillhouse
from stillhouse.certifying.run import verify
from stillhouse.champion import open_registry
from stillhouse.config import home, load
from stillhouse.errors import ConfigError
from stillhouse.ingesting import ingest
from stillhouse.knowledge import KnowledgeBase
from stillhouse.promoting import promote_version, roll_back
from stillhouse.records import Certificate, Sources, Verdict
from tests.command import Command, command


@pytest.fixture
def run(agents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(home(), agents, monkeypatch, capsys)


def last_gate(base: KnowledgeBase) -> Verdict:
    return base.journal.verdicts("gate")[-1]


def replace_value(table: str, column: str, observation_id: str, value: object) -> None:
    """Change one value in the data file of a Delta table, in place: every version that has the file changes.

    The size in the log is changed as well; otherwise the file would be found to be damaged.
    """
    for file in (home() / "knowledge" / "toy" / table).rglob("*.parquet"):
        rows = pq.read_table(file, partitioning=None)
        hit = pc.equal(rows["observation_id"], observation_id)
        if pc.any(hit).as_py():
            before = file.stat().st_size
            values = pc.if_else(hit, pa.scalar(value, rows[column].type), rows[column])
            pq.write_table(rows.set_column(rows.schema.get_field_index(column), column, values), file)
            for commit in (home() / "knowledge" / "toy" / table / "_delta_log").glob("*.json"):
                lines = commit.read_text().splitlines()
                sizes = (f'"size":{before}', f'"size":{file.stat().st_size}')
                commit.write_text("\n".join(line.replace(*sizes) if file.name in line else line for line in lines))
            return
    raise AssertionError(f"{observation_id} is in no file of {table}")


def test_the_first_gate_is_computed_again(toy_base, run: Command) -> None:
    base = toy_base()
    gate = last_gate(base)
    verification = verify("toy", gate.verdict_id)
    assert verification.differences == () and verification.missing == ()
    assert verification.identical and verification.result == "promoted"
    checked = " ".join(verification.checked)
    for part in ("window 'test'", "window 'validation'", "(challenger)", "certificate.json in MLflow", "new figures"):
        assert part in checked
    assert verify("toy").verdict_id == gate.verdict_id

    shown = run("verify", "toy")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "✓ identical" in shown.stdout and "not computed again: latencies" in shown.stdout
    as_json = json.loads(run("verify", "toy", gate.verdict_id, "--json").stdout)
    assert as_json["identical"] is True and as_json["verdict_id"] == gate.verdict_id


def test_a_changed_outcome_or_observation_is_named(toy_base, run: Command) -> None:
    base = toy_base()
    certificate = Certificate.model_validate(last_gate(base).evidence["certificate"])
    test = certificate.sources.window("test").window
    row = base.read_observations(test).iloc[5]
    replace_value("observations", "a", row["observation_id"], 9.0)
    shown = run("verify", "toy")
    assert shown.returncode == 1
    assert f"observation {row['observation_id']} of the window 'test' was changed" in shown.stdout
    assert "challenger.quality.test.log_loss" in shown.stdout
    replace_value("observations", "a", row["observation_id"], float(row["a"]))
    assert verify("toy").identical

    label = base.read_labelled(test, certificate.as_of).iloc[5]["outcome"]
    replace_value("outcomes", "action", row["observation_id"], ["go", "wait"][label])
    differences = " ".join(verify("toy").differences)
    assert "rows of the window 'test': their outcomes are not the recorded ones" in differences


def test_an_exchanged_model_is_named(toy_base, run: Command) -> None:
    base = toy_base()
    registry = open_registry("toy")
    champion = registry.champion()
    location = registry.client.get_logged_model(registry.models.signed(champion).model_id).artifact_location
    (model,) = Path(location.removeprefix("file://")).rglob("model.onnx")
    model.write_bytes(model.read_bytes() + b"\0")
    shown = run("verify", "toy", last_gate(base).verdict_id)
    assert shown.returncode == 1
    variant = last_gate(base).evidence["certificate"]["challenger"]["model"]
    assert f"differs: model {variant} (challenger)" in shown.stdout and "model.onnx" in shown.stdout


def test_a_changed_figure_is_named(toy_base, tmp_path: Path, run: Command) -> None:
    base = toy_base()
    certificate = Certificate.model_validate(last_gate(base).evidence["certificate"])
    file = tmp_path / "certificate.json"
    file.write_text(certificate.model_dump_json())
    assert verify("toy", str(file)).identical

    content = json.loads(file.read_text())
    content["challenger"]["quality"]["test"]["auc"] = 0.999
    file.write_text(json.dumps(content))
    shown = run("verify", "toy", file)
    assert shown.returncode == 1
    assert "figures and comparisons of the certificate: challenger.quality.test.auc: 0.999 is recorded" in shown.stdout
    assert "beside the journal" in shown.stdout


def test_what_cannot_be_verified(toy_base, tmp_path: Path, run: Command) -> None:
    base = toy_base()
    with pytest.raises(ConfigError, match="stillhouse history toy"):
        verify("toy", "no-such-verdict")
    shown = run("verify", "toy", "no-such-verdict")
    assert shown.returncode == 2 and "stillhouse history toy" in shown.stderr

    certificate = Certificate.model_validate(last_gate(base).evidence["certificate"])
    file = tmp_path / "certificate.json"
    file.write_text("{}")
    assert run("verify", "toy", file).returncode == 2
    old = certificate.model_dump(mode="json", exclude={"sources"})
    file.write_text(json.dumps(old))
    assert any("older version" in text for text in verify("toy", str(file)).missing)

    for data in (base.root / "observations").rglob("*.parquet"):
        data.unlink()
    shown = run("verify", "toy")
    assert shown.returncode == 2 and "missing: the rows of the windows" in shown.stdout and "upkeep" in shown.stdout


@pytest.mark.slow
def test_a_later_gate_a_watch_and_promotions(toy_base, day, agents: Path, run: Command) -> None:
    """A champion and its challenger, after the world has changed, also when the agent file and the tables have."""
    base = toy_base(24)
    watched = stillhouse.watch("toy", day(24))
    verification = verify("toy", watched.verdict_id)
    assert verification.differences == () and verification.missing == ()
    assert "the data contract" in verification.checked and "the drift report" in verification.checked

    ingest("toy", day(24), day(32))
    alarm = stillhouse.watch("toy", day(32))
    gate = stillhouse.refresh("toy", day(32), cause=alarm.verdict_id, trigger="drift")
    assert gate.evidence["certificate"]["champion"]
    ingest("toy", day(32), day(34))
    file = agents / "toy.yaml"
    file.write_text(file.read_text().replace("slice_margin: 0.1", "slice_margin: 0.2"))
    for verdict in (watched, alarm, gate):
        verification = verify("toy", verdict.verdict_id)
        assert verification.differences == () and verification.missing == (), verdict.summary
    checked = " ".join(verify("toy", gate.verdict_id).checked)
    assert "(champion)" in checked and "window 'past'" in checked

    assert gate.result == "promoted"
    back = roll_back("toy", "a look at it")
    again = promote_version("toy", 2 if str(back.evidence["champion"]) == "toy@1" else 1)
    for verdict in (back, again):
        assert verify("toy", verdict.verdict_id).identical
    forged = back.model_copy(update={"evidence": back.evidence | {"before": "toy@17"}})
    path = agents / "back.json"
    path.write_text(forged.model_dump_json())
    assert any("toy@17" in text for text in verify("toy", str(path)).differences)

    row = base.read_observations(watched_window(alarm)).iloc[3]
    replace_value("observations", "b", row["observation_id"], 9.0)
    differences = " ".join(verify("toy", alarm.verdict_id).differences)
    assert f"observation {row['observation_id']} of the window 'current' was changed" in differences
    assert "the drift report" in differences

    stored = json.loads(alarm.model_dump_json())
    stored["summary"] = "all is well"
    path = agents / "alarm.json"
    path.write_text(json.dumps(stored))
    shown = run("verify", "toy", path)
    assert shown.returncode == 1 and 'summary: "all is well" is recorded' in shown.stdout


@pytest.mark.slow
def test_the_evidence_of_an_audit_is_computed_again(agents: Path, day, toy_base) -> None:
    file = agents / "toy.yaml"
    lines = file.read_text().splitlines()
    budget = "  every: 12h\n  audit: {rows: 20}"
    file.write_text("\n".join(budget if line.startswith("  thresholds:") else line for line in lines))
    base = toy_base()
    for number in (21, 22, 23, 24):
        ingest("toy", day(number - 1), day(number))
        last = stillhouse.watch("toy", day(number))
    for verdict in base.journal.verdicts("watch"):
        verification = verify("toy", verdict.verdict_id)
        assert verification.differences == () and verification.missing == ()
    assert "the evidence of disagreement until 2024-01-25 00:00" in verify("toy", last.verdict_id).checked

    stored = json.loads(last.model_dump_json())
    step = next(step for step in stored["evidence"]["steps"] if step["process"] == "disagreement")
    step["log_evidence"] -= 0.5
    path = agents / "watch.json"
    path.write_text(json.dumps(stored))
    assert any(
        text.startswith("the evidence of disagreement: log_evidence") for text in verify("toy", str(path)).differences
    )


def watched_window(verdict: Verdict):
    return Sources.model_validate(verdict.evidence["sources"]).window("current").window


def test_verdicts_of_earlier_versions_stay_as_they_were(toy_base) -> None:
    """Without sources, the stored JSON has no such key."""
    certificate = Certificate.model_validate(last_gate(toy_base()).evidence["certificate"])
    older = certificate.model_dump(mode="json", exclude={"sources"}, exclude_unset=True)
    assert "sources" not in Certificate.model_validate(older).model_dump(mode="json", exclude_unset=True)
    assert load("toy").agent == "toy"
