"""MLflow compares like with like: every figure that may be compared is of the same rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from stillhouse import refresh, watch
from stillhouse.champion import open_registry
from stillhouse.cli import app
from stillhouse.config import home
from stillhouse.records import Certificate, SameRows, Verdict
from stillhouse.registry import Registry, links, names
from tests.flows import toy


def day(n: int) -> datetime:
    return (toy.BEGIN + timedelta(days=n)).to_pydatetime()


class Story:
    """Three refreshes of the toy: the verdict of each, and the registry after the last."""

    def __init__(self, verdicts: list[Verdict]) -> None:
        self.verdicts = verdicts
        self.registry: Registry = open_registry("toy")

    def run(self, number: int) -> Any:
        """The parent run of a refresh."""
        query = f"tags.verdict = '{self.verdicts[number].verdict_id}'"
        (run,) = self.registry.client.search_runs([self.registry.experiment_id], query)
        return run

    def history(self, run_id: str, metric: str) -> list[float]:
        return [point.value for point in self.registry.client.get_metric_history(run_id, metric)]


@pytest.fixture(scope="module")
def story(homes, tmp_path_factory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    (folder / "agents").mkdir()
    text = (Path(__file__).parents[1] / "flows" / "toy.yaml").read_text()
    (folder / "agents" / "toy.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLHOUSE_AGENTS", str(folder / "agents"))
        patch.setenv("STILLHOUSE_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        homes.copy(home(), text, 20, 24)
        first = open_registry("toy").client.search_runs([open_registry("toy").experiment_id], "tags.role = 'refresh'")
        verdicts = [open_registry("toy").runs.read_record(first[0].info.run_id, names.VERDICT, Verdict)]
        verdicts.append(refresh("toy", day(22), cause="two days more"))
        verdicts.append(refresh("toy", day(24), cause="four days more"))
        watch("toy", day(24))
        yield Story(verdicts)


@pytest.mark.slow
def test_gate_figures_are_on_the_parent_run_and_on_the_version(story: Story) -> None:
    assert [verdict.result for verdict in story.verdicts] == ["promoted"] * 3
    run, registry = story.run(2), story.registry
    certificate = registry.runs.read_record(run.info.run_id, names.CERTIFICATE, Certificate)
    champion = registry.client.get_run(registry.champion().run_id)
    for comparison in certificate.comparisons:
        if comparison.window == "test" and comparison.role == "non_inferior":
            for metrics in (run.data.metrics, champion.data.metrics):
                prefix = f"gate/test/{comparison.measure}"
                assert metrics[f"{prefix}/challenger"] == comparison.challenger
                assert metrics[f"{prefix}/champion"] == comparison.champion
                assert metrics[f"{prefix}/difference"] == comparison.difference
                assert metrics[f"{prefix}/lower_bound"] < comparison.difference
    assert any(name.startswith("gate/place:") for name in run.data.metrics), sorted(run.data.metrics)


def test_one_metric_over_all_versions_is_a_curve_on_the_same_rows(story: Story) -> None:
    registry, run = story.registry, story.run(2)
    record = registry.runs.read_record(run.info.run_id, names.SAME_ROWS, SameRows)
    roles = {one.role: one for one in record.models}
    assert roles["champion"].model == "toy@" + registry.previous().version
    assert {"challenger", "champion", "previous", "never_refreshed"} <= set(roles)
    for role in ("champion", "previous", "never_refreshed"):
        assert run.data.metrics[f"quality_{role}"] == roles[role].quality
    (curves,) = registry.client.search_runs([registry.experiment_id], "tags.role = 'curves'")
    assert len(story.history(curves.info.run_id, "quality_champion")) == 2
    assert len(story.history(curves.info.run_id, "quality_challenger")) == 3
    # the newest point of each version is of the newest window that it was scored on
    for role in ("challenger", "champion", "never_refreshed"):
        version = registry.version("toy", roles[role].model.rpartition("@")[2])
        assert registry.client.get_run(version.run_id).data.metrics["quality"] == roles[role].quality
    assert len(story.history(registry.previous().run_id, "quality")) == 2


def test_runs_table_has_plain_names(story: Story) -> None:
    run = story.run(2)
    assert run.info.run_name == f"promoted {day(24):%Y-%m-%d %H:%M} (manual)" and run.data.tags["result"] == "promoted"
    assert {"quality", "bytes", "p95_ms", "gain", "gain_low"} <= set(run.data.metrics)
    found = story.registry.client.search_runs(
        [story.registry.experiment_id], "metrics.quality > 0.5 and tags.result = 'promoted'"
    )
    assert len(found) == 3


def test_figures_of_a_window_of_its_own_say_so(story: Story) -> None:
    run = story.registry.client.get_run(story.registry.champion().run_id)
    assert "own_test/auc" in run.data.metrics and "test/auc" not in run.data.metrics
    assert run.data.params["own_test_window"] == story.registry.baseline(story.registry.champion()).test.dates


def test_status_compares_on_the_same_rows(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    app(["status", "toy"], standalone_mode=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert "same rows: " in printed and story.registry.runs.newest_same_rows().window.dates in printed


# --------------------------------------------------------------------------- why is this version champion?


def test_why_and_diff_tell_the_story_of_a_version(story: Story) -> None:
    registry, champion = story.registry, story.registry.champion()
    for run_id in (story.run(2).info.run_id, champion.run_id):
        why = registry.runs.read_file(run_id, names.WHY).decode()
        assert why.startswith(f"# Why {champion.name}&#64;{champion.version} is champion\n")
        assert all(heading in why for heading in ("## Reasons", "## Figures on the same rows", "## What the gate"))
        for page in ("models/toy/versions/", f"runs/{story.run(2).info.run_id}", "models/m-", "artifacts/diff.md"):
            assert f"(#/{page}" in why or page in why
        assert "workflowType=machine_learning" in why and "--rollback" in why
        diff = registry.runs.read_file(run_id, names.DIFF).decode()
        assert "| accuracy |" in diff and "## Settings that differ" in diff and "| test window |" in diff


def test_descriptions_say_in_one_sentence_who_is_champion(story: Story) -> None:
    registry, champion, previous = story.registry, story.registry.champion(), story.registry.previous()
    version = registry.client.get_model_version("toy", champion.version)
    sentence = f"toy@{champion.version} is champion since {day(24):%Y-%m-%d %H:%M} UTC: AUC "
    assert version.description.startswith(sentence) and f"of toy@{previous.version} on the " in version.description
    assert registry.client.get_registered_model("toy").description == version.description
    note = registry.client.get_experiment(registry.experiment_id).tags["mlflow.note.content"]
    assert note == version.description
    questions = ("Why?", "What changed?", "Is it still good?", "How to go back?")
    assert all(f"{question} " in version.description for question in questions)
    assert f"#/experiments/{registry.experiment_id}/runs/{champion.run_id}/artifacts/why.md?" in version.description
    replaced = registry.client.get_model_version("toy", previous.version)
    assert "was champion until" in replaced.description and replaced.tags["result"] == "replaced"


# --------------------------------------------------------------------------- docs/reference/mlflow.md

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "mlflow.md").read_text()


def documented(heading: str) -> re.Pattern[str]:
    """A pattern of the names in the first column of the tables below a heading; ``<name>`` stands for anything."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    spans = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
    return re.compile("|".join(re.sub(r"<[^>]+>", ".+", re.escape(span).replace(r"\<", "<")) for span in spans))


def test_page_names_every_metric_and_tag(story: Story) -> None:
    client, experiment = story.registry.client, story.registry.experiment_id
    runs = client.search_runs([experiment], "")
    metrics = {name for run in runs for name in run.data.metrics}
    assert len(metrics) > 50 and {run.data.tags["role"] for run in runs} >= {"watch", "refresh", "variant", "curves"}
    assert [name for name in sorted(metrics) if not documented("Metrics").fullmatch(name)] == []
    tags = {name for run in runs for name in run.data.tags if not name.startswith("mlflow.")}
    assert [name for name in sorted(tags) if not documented("Tags").fullmatch(name)] == []
    on_models = {name for model in story.registry.models.search("") for name in model.tags}
    known = re.compile(r"mlflow\..*|descendant\..*|registered|signature|" + documented("Tags").pattern)
    assert [name for name in sorted(on_models) if not known.fullmatch(name)] == []
    on_versions = {name for version in client.search_model_versions("name = 'toy'") for name in version.tags}
    assert [name for name in sorted(on_versions) if f"`{name}`" not in PAGE] == []


def test_the_ten_queries_run(story: Story) -> None:
    queries = re.findall(r"```sql\n(.+?)\n```", PAGE, re.DOTALL)
    assert len(queries) == 10
    found = {query: story.registry.client.search_runs([story.registry.experiment_id], query) for query in queries}
    assert sum(map(bool, found.values())) >= 5, {query: len(runs) for query, runs in found.items()}


def test_make_ui_prints_links_of_the_classic_view(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    links.main()
    printed = capsys.readouterr().out
    assert f"/#/experiments/{story.registry.experiment_id}/runs?workflowType=machine_learning" in printed
    assert "/#/models/toy?workflowType=machine_learning" in printed
