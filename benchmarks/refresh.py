"""From a shifted world to the promoted alias: a refresh beside a plain script that does everything anew.

``python -m benchmarks.refresh`` plays the flights and the router agent to a week after their last champion was made,
under several seeds, and lets both sides answer, in alternating order. ``--quick`` plays a few weeks of flights once and
writes no file.

- **Ours**: ``stillhouse.refresh`` in the mode ``update``, with the champion's teacher and the stored answers. It falls
  back to a redistillation where an update does not repay its cost. Its time holds the data contract, the examination of
  the teacher, the compression search, the proof, the gate, the logs in MLflow, the final fit and the promotion.
- **The script** reads the same rows, fits the teacher anew if it learns, asks it about every row of the window and of
  the test window, distils the same student from scratch, builds and measures every recipe of `RECIPES`, keeps the best
  one within the budgets and writes its figures to a file. It has no gate, no contract, no signatures and no registry.

Both use one CPU thread per model, the same labels and the same teacher. A call is a row that a teacher is asked about.
The router's teacher keeps the embeddings of sentences in a file. Both sides read that file, and each pays for every
sentence that it asks about with the time of one encoding, measured here without the file.

Quality is the named measure on the week after, which neither has seen.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from benchmarks.report import Goal, begin
from stillhouse import config

CLAIM = "A refresh needs a tenth of the time and of the teacher calls of a script that does everything anew"

RECIPES: tuple[tuple[dict[str, Any], ...], ...] = (
    ({"method": "fp32"},),
    ({"method": "int8_dynamic"},),
    ({"method": "int8_static"},),
    ({"method": "weights", "bits": 8, "compute": "int8"},),
    ({"method": "weights", "bits": 4, "compute": "int8"},),
    ({"method": "prune_units", "ratio": 0.25}, {"method": "int8_static"}),
    ({"method": "prune_units", "ratio": 0.5}, {"method": "int8_static"}),
)
"""What the script tries; of a text student only the number formats."""


@dataclass(frozen=True)
class World:
    """An agent, the week of its champion, and the week of the refresh, both counted from its first day."""

    agent: str
    champion_week: int
    refresh_week: int


WORLDS = (World("flights", 22, 25), World("router", 9, 12))
QUICK = World("flights", 6, 8)


@dataclass(frozen=True)
class Side:
    """What one side needed and reached."""

    seconds: float
    calls: int
    quality: float
    detail: dict[str, Any]


def main() -> None:
    """Play, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a few weeks of flights, one seed, no file written")
    parser.add_argument("--embeddings", type=Path, help="folder with stored embeddings of the router's sentences")
    options = parser.parse_args()
    run = begin("refresh", writes_result=not options.quick)
    worlds, seeds = ((QUICK,), 1) if options.quick else (WORLDS, options.seeds)
    pairs = [
        compare(world, seed, options.embeddings, ours_first=seed % 2 == 0) for seed in range(seeds) for world in worlds
    ]
    goals = []
    for world in worlds:
        of_world = [pair for pair in pairs if pair["agent"] == world.agent]
        goals += [
            median_goal(f"{world.agent}_time_ratio", 10, "higher", [pair["time_ratio"] for pair in of_world]),
            median_goal(f"{world.agent}_call_ratio", 10, "higher", [pair["call_ratio"] for pair in of_world]),
            median_goal(f"{world.agent}_points_lost", 0.3, "lower", [pair["points_lost"] for pair in of_world]),
        ]
    if options.quick:
        print(json.dumps([{goal.name: round(goal.measured, 3)} for goal in goals] + pairs, indent=1))
    else:
        run.write(CLAIM, goals, {"pairs": pairs}, ("torch", "lightgbm", "onnxruntime", "mlflow", "deltalake"))


def median_goal(name: str, aim: float, better: Literal["higher", "lower"], values: Sequence[float]) -> Goal:
    """Median and range of the repeats."""
    return Goal(name, aim, better, statistics.median(values), min(values), max(values))


def compare(world: World, seed: int, embeddings: Path | None, *, ours_first: bool) -> dict[str, Any]:
    """Both sides in one world, with their ratios; the world is made in a store of its own."""
    with tempfile.TemporaryDirectory(prefix="stillhouse-refresh-") as folder:
        now = prepare(world, seed, Path(folder), embeddings)
        call_seconds = measure_call(world, now)
        sides: dict[str, Side] = {}
        for name in ("ours", "script") if ours_first else ("script", "ours"):
            sides[name] = (refresh if name == "ours" else script)(world, now, Path(folder), call_seconds)
        ours, other = sides["ours"], sides["script"]
        return {
            "agent": world.agent,
            "seed": seed,
            "time_ratio": other.seconds / ours.seconds,
            "call_ratio": other.calls / max(1, ours.calls),
            "points_lost": 100 * (other.quality - ours.quality),
            "call_ms": 1000 * call_seconds,
            **{name: vars(side) for name, side in sides.items()},
        }


def prepare(world: World, seed: int, folder: Path, embeddings: Path | None) -> datetime:
    """Play the agent's history, with a champion in its week; returns the time of the refresh."""
    import stillhouse
    from stillhouse.ingesting import ingest

    (folder / "agents").mkdir()
    text = (Path("agents") / f"{world.agent}.yaml").read_text(encoding="utf-8")
    text = text.replace("distillation: {", f"distillation: {{seed: {seed}, ")
    text = text.replace("distillation:\n", f"distillation:\n  seed: {seed}\n")
    text = text.replace(
        "target: examples.flights:Boosting", f"target: examples.flights:Boosting, settings: {{seed: {seed}}}"
    )
    (folder / "agents" / f"{world.agent}.yaml").write_text(text, encoding="utf-8")
    home = folder / "home"
    (home / "mlflow").mkdir(parents=True)
    os.environ |= {
        "STILLHOUSE_HOME": str(home),
        "STILLHOUSE_AGENTS": str(folder / "agents"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow' / 'mlflow.db'}",
    }
    if embeddings is not None:
        shutil.copytree(embeddings, home / "embeddings")
    since = config.load(world.agent).observations.since
    made, now = (since + timedelta(weeks=week) for week in (world.champion_week, world.refresh_week))
    ingest(world.agent, since, made)
    verdict = stillhouse.refresh(world.agent, made, trigger="bootstrap", cause="first")
    assert verdict.result == "promoted", verdict.summary
    ingest(world.agent, made, now)
    return now


def measure_call(world: World, now: datetime) -> float:
    """Seconds that one row of the stored embeddings would have taken; 0 if the teacher keeps none."""
    if world.agent != "router":
        return 0.0
    from examples import router

    texts = router.sentences(pd.Timestamp(now) - pd.Timedelta(weeks=1), pd.Timestamp(now))["text"].tolist()[:256]
    encode = router.MiniLM()._encode
    encode(texts[:64])  # loads the encoder
    start = time.perf_counter()
    encode(texts)
    return (time.perf_counter() - start) / len(texts)


# --------------------------------------------------------------------------- the sides


def refresh(world: World, now: datetime, folder: Path, call_seconds: float) -> Side:
    """An update of the champion, from the request to the moved alias."""
    import stillhouse
    from stillhouse.champion import load_champion, open_registry
    from stillhouse.knowledge import KnowledgeBase

    base = KnowledgeBase(config.load(world.agent))
    before = sum(cost.rows for cost in base.answers.spending().values())
    start, cpu_start = time.perf_counter(), time.process_time()
    verdict = stillhouse.refresh(world.agent, now, mode="update", teacher="keep", cause="the world has shifted")
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    calls = sum(cost.rows for cost in base.answers.spending().values()) - before
    champion = load_champion(world.agent)
    assert champion is not None
    rows = read_following_week(world, now)
    quality = points(champion.variant.predict_proba(rows), rows, world)
    registry = open_registry(world.agent)
    (logged,) = registry.client.search_runs([registry.experiment_id], f"tags.verdict = '{verdict.verdict_id}'")
    detail = {
        "cpu_seconds": cpu_seconds,
        "fell_back": logged.data.tags.get("update_not_made"),  # then it was a redistillation with the same teacher
        "result": verdict.result,
        "version": str(champion.model),
        "summary": verdict.summary,
    }
    return Side(seconds + calls * call_seconds, calls, quality, detail)


def script(world: World, now: datetime, folder: Path, call_seconds: float) -> Side:
    """Everything anew: teacher, answers, student, every recipe, figures."""
    from pydantic import TypeAdapter

    from stillhouse.champion import load_champion
    from stillhouse.compress.search.greedy import search
    from stillhouse.compress.variants import target_from_student, variant_writer
    from stillhouse.config import Compression, Recipe, fit_defaults, leaves
    from stillhouse.distill.students import columns_of, new_student
    from stillhouse.distill.train import distil
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.parts import resolve
    from stillhouse.quality import get_measure
    from stillhouse.records import SizeLimits
    from stillhouse.refreshing.data import build_training_set
    from stillhouse.stats import replace_non_finite
    from stillhouse.variant import Variant, encode

    settings = config.load(world.agent)
    champion = load_champion(world.agent)
    assert champion is not None
    start, cpu_start = time.perf_counter(), time.process_time()
    base = KnowledgeBase(settings)
    end = now - settings.outcomes.delay
    test_start = end - (settings.windows.test or timedelta(days=4))
    rows = base.read_labelled(base.window("script", test_start - settings.windows.train, end), now)
    is_test = (rows["observed_at"] >= test_start).to_numpy()
    train, test = base.limit(rows[~is_test].reset_index(drop=True), settings.windows.max_train_rows), rows[is_test]
    (leaf,) = leaves(settings.teachers)
    section: Any = leaf.teacher
    teacher = resolve(section.target, where="the script")(**section.settings)
    if section.learns:
        teacher.fit(train, train["outcome"].to_numpy())
    probs = np.asarray(teacher.predict_proba(train), dtype=np.float64)
    teacher.predict_proba(test)
    calls = len(train) + len(test)
    encoder = teacher.text_encoder() if settings.student.initialised_by_teacher else None
    columns = columns_of(settings, train, encoder)
    labels, x = train["outcome"].to_numpy(), encode(train, columns)
    student = new_student(settings, columns, x, encoder)
    training_set = build_training_set(x, probs, labels, columns)
    distillation = fit_defaults(settings.distillation, len(train))
    distil(student, training_set, distillation)
    measure = get_measure(settings)
    test_labels = test["outcome"].to_numpy()
    adapter: TypeAdapter[Any] = TypeAdapter(Recipe)
    recipes = RECIPES[:5] if settings.student.reads_text else RECIPES

    def recover(state: Any, epochs: int) -> Any:
        kept = [dict(column) for column in state.columns]
        distil(state.module, build_training_set(encode(train, kept), probs, labels, kept), distillation, epochs=epochs)
        return state

    frontier = search(
        lambda: target_from_student(
            student,
            columns,
            settings.actions,
            calibration=lambda kept: encode(train, kept),
            validation=lambda kept: encode(test, kept),
            quality=lambda probs: measure.points(replace_non_finite(probs, test_labels), test_labels, test),
            recover=recover,
        ),
        Compression(recipes=tuple(adapter.validate_python(recipe) for recipe in recipes), search=None),
        SizeLimits(**settings.budgets.model_dump(include=set(SizeLimits.model_fields))),
        variant_writer(world.agent, settings.actions, {}),
        folder / "script",
    )
    (folder / "script.json").write_text(frontier.model_dump_json(), encoding="utf-8")
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    chosen = frontier.named(frontier.chosen)
    rows = read_following_week(world, now)
    quality = points(Variant(chosen.folder).predict_proba(rows), rows, world)
    detail = {
        "cpu_seconds": cpu_seconds,
        "chosen": chosen.name,
        "bytes": chosen.bytes,
        "recipes": len(frontier.candidates),
    }
    return Side(seconds + calls * call_seconds, calls, quality, detail)


def read_following_week(world: World, now: datetime) -> pd.DataFrame:
    """The labelled rows of the week after the refresh, from the sources: neither side has seen them."""
    from stillhouse.parts import resolve

    settings = config.load(world.agent)
    observations = resolve(settings.observations.source, where="the benchmark")(now, now + timedelta(weeks=1))
    outcomes = resolve(settings.outcomes.source, where="the benchmark")(now, now + timedelta(weeks=1))
    action = observations["observation_id"].map(outcomes.set_index("observation_id")["action"])
    rows = observations.assign(outcome=action.map({name: i for i, name in enumerate(settings.actions)}))
    rows = rows.dropna(subset=["outcome"]).reset_index(drop=True)
    return rows.assign(outcome=rows["outcome"].astype(np.int64))


def points(probs: np.ndarray[Any, Any], rows: pd.DataFrame, world: World) -> float:
    """The named measure as a share of its range, 0…1."""
    from stillhouse.quality import get_measure
    from stillhouse.stats import replace_non_finite

    labels = rows["outcome"].to_numpy()
    measure = get_measure(config.load(world.agent)).for_labels(labels, probs.shape[1])
    return float(measure.points(replace_non_finite(probs, labels), labels, rows))


if __name__ == "__main__":
    config.use_embedded_defaults()
    main()
