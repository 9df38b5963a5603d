"""Every error in an agent file is reported with file, line, key and remedy."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from stillhouse import config
from stillhouse.config import (
    CategoryColumn,
    Compression,
    ConvolutionEncoder,
    DynamicInt8,
    Fp32,
    HashedRows,
    LowRank,
    NewestRows,
    NumberColumn,
    PruneColumns,
    PruneHeads,
    PruneLayers,
    PruneUnits,
    Recipe,
    Search,
    SincePromotion,
    StaticInt8,
    TextStudent,
    Vocabulary,
    WeightOnly,
    embedded_environment,
    explain,
    load,
    load_file,
    number_format,
    recipe_name,
    structural_steps,
)
from stillhouse.config.base import tagged
from stillhouse.errors import ConfigError

GOOD = """\
agent: toy
actions: [stay, move]
observations:
  source: "toy:rows"
  since: 2013-01-01T00:00:00Z
  columns:
    temp: {type: number, min: -30, max: 40}
    number: {type: number}
    origin: {type: category, values: [EWR, JFK], max_unknown: 0.1}
outcomes: {source: "toy:outcomes", delay: 1d}
teachers:
  - {kind: python, name: forest, target: "toy:Forest", weight: 2}
student: {kind: tabular, widths: [16]}
compression:
  recipes: [{method: fp32}, [{method: prune_units, ratio: 0.5}, {method: int8_static}]]
  search: {candidates: 9}
windows: {train: 8w, test: 1w, current: 36h}
watch:
  thresholds: {psi: 0.25}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "toy.yaml"


def error_message(file: Path, text: str) -> str:
    """The error message for ``text``, each line without the file's name."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_file(file)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(f"{file}:") for line in lines)
    return "\n".join(line.removeprefix(f"{file}:") for line in lines)


@pytest.mark.parametrize(
    ("written", "current"),
    [
        ("1.5d", timedelta(hours=36)),
        ("since_promotion", SincePromotion()),
        ("{since: promotion, at_most: 2w}", SincePromotion(at_most=timedelta(days=14))),
        ("{rows: 500}", NewestRows(rows=500)),
    ],
)
def test_the_current_window_is_a_length_a_count_or_since_the_promotion(
    file: Path, written: str, current: object
) -> None:
    file.write_text(GOOD.replace("current: 36h", f"current: {written}, sample: 200"))
    windows = load_file(file).windows
    assert windows.current == current and windows.sample == 200
    again = config.AgentConfig.model_validate(load_file(file).model_dump())
    assert again.windows == windows


def test_typical_length_of_a_current_window() -> None:
    def typical_length(current: object) -> timedelta:
        windows = config.Windows.model_validate({"train": "8w", "test": "1w", "current": current})
        return windows.typical_length(1000, timedelta(days=10))

    assert typical_length("36h") == timedelta(hours=36)
    assert typical_length({"rows": 250}) == timedelta(days=2.5)
    assert typical_length("since_promotion") == timedelta(weeks=1)
    assert typical_length({"since": "promotion", "at_most": "3d"}) == timedelta(days=3)


IMPORTING = """importing:
  observed_at: {column: when, format: "%d.%m.%Y", timezone: Europe/Berlin}
  columns: {temp: Temperature}
  actions: {"1": move}
  decision: {action: did, probabilities: {stay: p0, move: p1}}
"""
IMPORTING_ERRORS = [
    ('format: "%d.%m.%Y"', "format: day", "importing.observed_at.format: 'day' must be iso, s, ms, us, or a pattern"),
    ('"%d.%m.%Y"', '"%d.%m.%Y %Z"', "importing.observed_at.format: '%d.%m.%Y %Z' must be iso, s, ms, us, or a pattern"),
    ('"%d.%m.%Y"', '"%d.%m.%Y %Q"', "it cannot be read ('Q' is a bad directive"),
    ('"%d.%m.%Y"', '"%s"', "it has no year"),
    ('"%d.%m.%Y"', '"%d.%m.%Y %I:%M"', "hours of %I need %p"),
    ('"%d.%m.%Y"', '"%Y %Y"', "it cannot be read ("),
    ('"%d.%m.%Y"', '"%Y-%m-%d %"', "it cannot be read (stray %"),
    ("Europe/Berlin", "Berlin", "importing.observed_at.timezone: 'Berlin' is not a time zone"),
    ("{temp: T", "{tmp: T", "importing.columns: no column is called 'tmp'; did you mean 'temp'?"),
    ("move}\n", "mov}\n", "importing.actions: no action is called 'mov'; did you mean 'move'?"),
    (", move: p1", "", "importing.decision.probabilities: must name each action once: stay, move"),
    ("  observed_at", "  observed", "importing.observed_at: is required and missing"),
]


@pytest.mark.parametrize(("right", "wrong", "message"), IMPORTING_ERRORS)
def test_an_error_in_importing_is_reported(file: Path, right: str, wrong: str, message: str) -> None:
    file.write_text(GOOD + IMPORTING)
    importing = load_file(file).importing
    assert importing is not None and importing.observed_at.timezone == "Europe/Berlin"
    assert message in error_message(file, GOOD + IMPORTING.replace(right, wrong))


def test_a_good_file_is_read_and_frozen(file: Path) -> None:
    file.write_text(GOOD)
    toy = load_file(str(file))
    assert toy.observations.columns["temp"] == NumberColumn(type="number", min=-30, max=40)
    assert toy.observations.columns["origin"] == CategoryColumn(type="category", values=("EWR", "JFK"), max_unknown=0.1)
    assert toy.observations.numbers == ("temp", "number")
    assert toy.observations.categories == ("origin",)
    assert toy.observations.since == datetime(2013, 1, 1, tzinfo=UTC)
    assert toy.windows.train == timedelta(weeks=8)
    assert toy.windows.current == timedelta(hours=36)
    assert toy.compression.recipes == (
        (Fp32(method="fp32"),),
        (PruneUnits(method="prune_units", ratio=0.5), StaticInt8(method="int8_static")),
    )
    assert toy.compression.search == Search(candidates=9)
    assert toy.distillation.temperature == 2.0
    assert toy.promotion.approval == "automatic"
    for part, field in ((toy, "agent"), (toy.windows, "train"), (toy.teachers[0], "weight")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, field, getattr(part, field))


ERRORS = [
    # misspelt keys, at every depth
    ("agent: toy", "agent: toy\ndescripton: x", "2: descripton: unknown key; did you mean 'description'?"),
    (
        "current: 36h",
        "current: 36h, min_train_row: 60",
        "17: windows.min_train_row: unknown key; did you mean 'min_train_rows'?",
    ),
    ("weight: 2", "wieght: 2", "12: teachers.0.wieght: unknown key; did you mean 'weight'?"),
    ("min: -30", "minn: -30", "7: observations.columns.temp.minn: unknown key; did you mean 'min'?"),
    (
        "{type: number}",
        "{type: number, max_mising: 1}",
        "8: observations.columns.number.max_mising: unknown key; did you mean 'max_missing'?",
    ),
    ("ratio: 0.5", "ratoi: 0.5", "15: compression.recipes.1.0.ratoi: unknown key; did you mean 'ratio'?"),
    ("candidates: 9", "candidate: 9", "16: compression.search.candidate: unknown key; did you mean 'candidates'?"),
    ("psi: 0.25", "outputpsi: 1", "19: watch.thresholds.outputpsi: unknown key; did you mean 'output_psi'?"),
    # a key of another kind of column is not suggested
    (
        "max_unknown: 0.1",
        "min: 3",
        "9: observations.columns.origin.min: unknown key; known keys: type, values, max_unknown, max_missing, drift",
    ),
    # tags of unions
    (
        "type: category",
        "type: categroy",
        "9: observations.columns.origin.type: 'categroy' is not known; did you mean 'category'?",
    ),
    (
        "{type: number}",
        "{}",
        "8: observations.columns.number.type: is required and missing: one of number, category, text",
    ),
    (
        "method: fp32",
        "method: int4",
        "15: compression.recipes.0.0.method: 'int4' is not known; known are: fp32, int8_dynamic, int8_static, weights, "
        "prune_units, prune_heads, prune_layers, prune_columns, low_rank, vocabulary, length, hashed_rows",
    ),
    (
        "candidates: 9",
        "steps: [prune]",
        "16: compression.search.steps.0: 'prune' is not known; did you mean 'prune_units'?",
    ),
    ("kind: tabular", "kind: tabluar", "13: student.kind: 'tabluar' is not known; did you mean 'tabular'?"),
    # missing keys
    (", delay: 1d", "", "10: outcomes.delay: is required and missing: time until an outcome is known"),
    ("windows: {train: 8w, test: 1w, current: 36h}\n", "", "1: windows: is required and missing"),
    # durations
    (
        "delay: 1d",
        "delay: 1 day",
        "10: outcomes.delay: '1 day' is not a duration: write a number and s, m, h, d or w, such as '12h' or '7d'",
    ),
    (
        "delay: 1d",
        "delay: 5",
        "10: outcomes.delay: 5 is not a duration: write a number and s, m, h, d or w, such as '12h' or '7d'",
    ),
    (
        "delay: 1d",
        "delay: -1d",
        "10: outcomes.delay: '-1d' is not a duration: write a number and s, m, h, d or w, such as '12h' or '7d'",
    ),
    ("delay: 1d", "delay: 99999999999w", "10: outcomes.delay: '99999999999w' is longer than any calendar"),
    ("train: 8w", "train: 0d", "17: windows.train: must be longer than zero"),
    (
        "current: 36h",
        "current: 36",
        "17: windows.current: must be a duration such as 7d, {rows: 5000}, since_promotion, or "
        "{since: promotion, at_most: 14d}",
    ),
    (
        "current: 36h",
        "current: soon",
        "17: windows.current: 'soon' is not a duration: write a number and s, m, h, d or w, such as '12h' or '7d'",
    ),
    ("current: 36h", "current: {rows: 0}", "17: windows.current.rows: must be at least 1, not 0"),
    ("current: 36h", "current: {row: 5}", "17: windows.current.row: unknown key; did you mean 'rows'?"),
    (
        "current: 36h",
        "current: {since: promotion, at_most: 0d}",
        "17: windows.current.at_most: must be longer than zero",
    ),
    (
        "current: 36h",
        "current: {rows: 99}",
        "17: windows.current.rows: is 99, but a window needs `observations.min_rows`, 100, to be judged",
    ),
    ("current: 36h", "current: 36h, sample: 50", "17: windows.sample: must be at least 100, not 50"),
    # types
    ("[stay, move]", "[no, go]", "2: actions.0: must be text: put it in quotes, not false"),
    ("[stay, move]", "stay", "2: actions: must be a list, such as [a, b], not 'stay'"),
    ("weight: 2", "weight: heavy", "12: teachers.0.weight: must be a number, not 'heavy'"),
    ("weight: 2", "weight: .inf", "12: teachers.0.weight: must be a finite number, not inf"),
    ("[16]", "[16.5]", "13: student.widths.0: must be a whole number, not 16.5"),
    ("min: -30", "drift: maybe", "7: observations.columns.temp.drift: must be true or false, not 'maybe'"),
    (
        "2013-01-01T00:00:00Z",
        "2013-01-01",
        "5: observations.since: 2013-01-01 must be a moment with a time zone, such as 2013-01-01T00:00:00Z",
    ),
    (
        "2013-01-01T00:00:00Z",
        "yesterday",
        "5: observations.since: 'yesterday' must be a moment with a time zone, such as 2013-01-01T00:00:00Z",
    ),
    (
        "{train: 8w, test: 1w, current: 36h}",
        "",
        "17: windows: must be a mapping, not nothing; its keys are: train, test, current, sample, max_train_rows, "
        "min_train_rows",
    ),
    ("    number: {", "    7: {", "6: observations.columns: the key 7 must be text: put it in quotes"),
    ("agent: toy\n", "agent: toy\ntrue: x\n", "1: the file: the key true must be text: put it in quotes"),
    # ranges and forms
    ("weight: 2", "weight: 0", "12: teachers.0.weight: must be more than 0, not 0"),
    ("max_unknown: 0.1", "max_unknown: 1.5", "9: observations.columns.origin.max_unknown: must be at most 1, not 1.5"),
    ("[16]", "[1]", "13: student.widths.0: must be at least 2, not 1"),
    ("ratio: 0.5", "ratio: 1", "15: compression.recipes.1.0.ratio: must be less than 1, not 1"),
    ("ratio: 0.5", "ratios: {a: -1}", "15: compression.recipes.1.0.ratios.a: must be at least 0, not -1"),
    ("candidates: 9", "candidates: 0", "16: compression.search.candidates: must be at least 1, not 0"),
    ("candidates: 9", "parallel: 65", "16: compression.search.parallel: must be at most 64, not 65"),
    (
        "candidates: 9",
        "time: 5",
        "16: compression.search.time: 5 is not a duration: write a number and s, m, h, d or w, such as '12h' or '7d'",
    ),
    (
        "{method: int8_static}",
        "{method: weights, bits: 2}",
        "15: compression.recipes.1.1.bits: 2 is not known; known are: 8, 4",
    ),
    ("[stay, move]", "[stay]", "2: actions: must have at least 2 entries, not ['stay']"),
    (
        "agent: toy",
        "agent: Toy X",
        "1: agent: 'Toy X' must be a name: a lower-case letter, then lower-case letters, digits, _ or -, at most 63",
    ),
    ('"toy:rows"', "toy.rows", "4: observations.source: 'toy.rows' must be of the form 'package.module:object'"),
    ("watch:", "weights: {folow: fixed}\nwatch:", "18: weights.folow: unknown key; did you mean 'follow'?"),
    (
        "watch:",
        "weights: {follow: outcome}\nwatch:",
        "18: weights.follow: 'outcome' is not known; did you mean 'outcomes'?",
    ),
    ("watch:", "weights: {rows: 10}\nwatch:", "18: weights.rows: must be at least 50, not 10"),
    # errors across keys
    ("min: -30", "min: 50", "7: observations.columns.temp: min 50.0 is larger than max 40.0"),
    ("[EWR, JFK]", "[EWR, EWR]", "9: observations.columns.origin: values names 'EWR' more than once"),
    ("[EWR, JFK]", "[]", "9: observations.columns.origin.values: must have at least 1 entries, not []"),
    (
        "    temp: {",
        "    observed_at: {",
        "3: observations: column names ['observed_at'] are reserved for the knowledge base",
    ),
    ("[stay, move]", "[stay, stay]", "2: actions: actions must differ, and 'stay' is given more than once"),
    (
        "[{method: prune_units, ratio: 0.5}, {method: int8_static}]",
        "[{method: fp32}]",
        "15: compression.recipes: recipes must differ, and 'fp32' is given more than once",
    ),
    (
        "[{method: prune_units, ratio: 0.5}, {method: int8_static}]",
        "[{method: int8_static}, {method: prune_units}]",
        "15: compression.recipes: int8_static, prune_units: a recipe is any number of structural steps and then at "
        "most one number format (fp32, int8_dynamic, int8_static, weights)",
    ),
    (
        "watch:",
        "promotion: {slices: [temp]}\nwatch:",
        "18: promotion.slices: 'temp' is not a category column of `observations`; those are: origin",
    ),
    ("psi: 0.25", "psi: 0.25, psi: 3", "19: watch.thresholds.psi: is written twice (first in line 19); remove one"),
]

WIDER = GOOD.replace(
    "  columns:\n",
    "  columns:\n    dewp: {type: number, max: 30, max_missing: 0.1}\n"
    "    gate: {type: category, values: [A, B], max_missing: 0.1}\n",
)

RULE_ERRORS = [
    # columns that are not there, or of the wrong type
    (
        "rules: [{type: ordered, low: dewpp, high: temp}]",
        "rules.0.low: no column is called 'dewpp'; did you mean 'dewp'?",
    ),
    (
        "rules: [{type: ordered, low: origin, high: temp}]",
        "rules.0.low: 'origin' is a category column; it must be a number",
    ),
    (
        "rules: [{type: pairs, columns: [temp, gate], allowed: [[a, b]]}]",
        "rules.0.columns: 'temp' is a number column; it must be a category",
    ),
    (
        "rules: [{type: range_when, column: dewp, max: 9, when: {column: origin, min: 3}}]",
        "rules.0.when.column: 'origin' is a category column; it must be a number",
    ),
    (
        "rules: [{type: present_when, column: nil, when: {column: temp, min: 3}}]",
        "rules.0.column: no column is called 'nil'; there are: dewp, gate, temp, number, origin",
    ),
    ("unique: [[origin, tmp]]", "unique.0: no column is called 'tmp'; did you mean 'temp'?"),
    # rules without a limit, and repetitions
    ("rules: [{type: ordered, low: temp, high: temp}]", "rules.0.high: must be another column than `low`, 'temp'"),
    (
        "rules: [{type: pairs, columns: [gate, gate], allowed: [[A, A]]}]",
        "rules.0.columns: must be two different columns, and 'gate' is given twice",
    ),
    (
        "rules: [{type: pairs, columns: [origin, gate], allowed: [[JFK, A], [JFK, A]]}]",
        "rules.0.allowed: ['JFK', 'A'] is given more than once",
    ),
    (
        "rules: [{type: range_when, column: dewp, when: {column: temp, min: 3}}]",
        "rules.0: can never be broken: give `min`, `max` or both",
    ),
    (
        "rules: [{type: range_when, column: dewp, max: 9, when: {column: temp}}]",
        "rules.0.when: sets no condition: give `values` of a category, or `min` or `max`",
    ),
    (
        "rules: [{type: range_when, column: dewp, max: 9, when: {column: gate, values: [A], max: 3}}]",
        "rules.0.when: `values` are for a category, `min` and `max` for a number: give one or the other",
    ),
    (
        "rules: [{type: range_when, column: dewp, max: 9, when: {column: gate, values: [A, A]}}]",
        "rules.0.when.values: names 'A' more than once",
    ),
    (
        "rules: [{type: range_when, column: dewp, min: 5, max: 3, when: {column: temp, min: 3}}]",
        "rules.0: min 5 is larger than max 3",
    ),
    ("unique: [[]]", "unique.0: must name at least one column"),
    ("unique: [[gate, gate]]", "unique.0: names 'gate' more than once"),
    ("unique: [[observation_id]]", "unique.0: observation_id is unique anyway; leave this list out"),
    ("unique: [[observed_at, gate], [gate, origin, observed_at]]", "unique.1: follows from unique.0; leave it out"),
    ("volume: {}", "volume: can never be broken: give `min_per_day` above 0, `max_per_day` or both"),
    ("volume: {min_per_day: 9, max_per_day: 5}", "volume: min_per_day 9 is larger than max_per_day 5"),
    ("freshness: 0h", "freshness: must be longer than zero"),
    # rules that no row can break or keep because of the limits of the columns
    (
        "rules: [{type: ordered, low: temp, high: hot}]",
        "rules.0: can never be broken: temp is at most 40, hot at least 45",
    ),
    (
        "rules: [{type: ordered, low: hot, high: temp}]",
        "rules.0: is broken by every row: hot is at least 45, temp at most 40",
    ),
    (
        "rules: [{type: pairs, columns: [origin, gate], allowed: [[JFK, C]]}]",
        "rules.0.allowed: 'C' is not among the values of gate; those are: A, B",
    ),
    (
        "rules: [{type: pairs, columns: [origin, gate], allowed: [[JFK, A], [JFK, B], [EWR, A], [EWR, B]]}]",
        "rules.0.allowed: can never be broken: it has every pair of origin and gate",
    ),
    (
        "rules: [{type: range_when, column: temp, max: 40, when: {column: gate, values: [A]}}]",
        "rules.0: can never be broken: temp is between -30 and 40 on all rows",
    ),
    (
        "rules: [{type: range_when, column: temp, min: 41, when: {column: gate, values: [A]}}]",
        "rules.0: is broken by every row that meets the condition: temp is between -30 and 40 on all rows",
    ),
    (
        "rules: [{type: range_when, column: dewp, max: 9, when: {column: temp, min: 41}}]",
        "rules.0.when: is never met: temp is between -30 and 40 on all rows",
    ),
    (
        "rules: [{type: range_when, column: dewp, max: 9, when: {column: gate, values: [C]}}]",
        "rules.0.when.values: 'C' is not among the values of gate; those are: A, B",
    ),
    (
        "rules: [{type: range_when, column: dewp, max: 9, when: {column: dewp, min: 3}}]",
        "rules.0.when.column: must be another column than `column`",
    ),
    (
        "rules: [{type: present_when, column: temp, when: {column: gate, values: [A]}}]",
        "rules.0.column: can never be broken: temp may be missing on no row (max_missing 0)",
    ),
    (
        "rules: [{type: ordered, low: dewp, high: temp}, {type: ordered, low: dewp, high: temp}]",
        "rules.1: is the same as rules.0",
    ),
    ("rules: [{type: orderd, low: dewp, high: temp}]", "rules.0.type: 'orderd' is not known; did you mean 'ordered'?"),
]


@pytest.mark.parametrize(("rule", "message"), RULE_ERRORS, ids=[message[:60] for _, message in RULE_ERRORS])
def test_a_rule_without_effect_is_refused(file: Path, rule: str, message: str) -> None:
    text = WIDER.replace("    dewp:", "    hot: {type: number, min: 45}\n    dewp:") if "hot" in rule else WIDER
    assert error_message(file, text.replace("  columns:\n", f"  {rule}\n  columns:\n")) == f"6: observations.{message}"


def test_all_rule_errors_are_reported_at_once_each_with_its_line(file: Path) -> None:
    rules = "rules:\n    - {type: ordered, low: x, high: temp}\n    - {type: ordered, low: dewp, high: y}\n"
    text = WIDER.replace("  columns:\n", f"  {rules}  unique: [[z]]\n  columns:\n")
    message = error_message(file, text).split("\n")
    assert [line.split(": ")[:2] for line in message] == [
        ["9", "observations.unique.0"],
        ["7", "observations.rules.0.low"],
        ["8", "observations.rules.1.high"],
    ]


def test_a_whole_data_contract_is_read(file: Path) -> None:
    contract = """\
  freshness: 90m
  volume: {min_per_day: 10, max_per_day: 20.5}
  unique: [[observed_at, gate], [dewp, origin]]
  rules:
    - {type: ordered, low: dewp, high: temp, max_broken: 0.1}
    - {type: pairs, columns: [origin, gate], allowed: [[JFK, A], [EWR, B]]}
    - {type: range_when, column: temp, min: 0, when: {column: origin, values: [JFK]}}
    - {type: present_when, column: dewp, when: {column: temp, min: 0, max: 9}}
"""
    file.write_text(WIDER.replace("  columns:\n", f"{contract}  columns:\n"))
    observations = load_file(file).observations
    assert observations.freshness == timedelta(minutes=90) and observations.volume is not None
    assert (observations.volume.min_per_day, observations.volume.max_per_day) == (10, 20.5)
    assert observations.unique == (("observed_at", "gate"), ("dewp", "origin"))
    assert [rule.type for rule in observations.rules] == ["ordered", "pairs", "range_when", "present_when"]
    assert [rule.max_broken for rule in observations.rules] == [0.1, 0, 0, 0]


@pytest.mark.parametrize(("right", "wrong", "message"), ERRORS, ids=[message[:44] for _, _, message in ERRORS])
def test_an_error_is_reported_with_line_key_and_remedy(file: Path, right: str, wrong: str, message: str) -> None:
    assert GOOD.count(right) == 1
    reported = error_message(file, GOOD.replace(right, wrong))
    assert reported == message
    assert not re.search(r"Input should|pydantic|union|discriminator|validation|Literal|datetime\.", reported)


def test_every_pattern_of_a_key_is_described(file: Path) -> None:
    patterns = set(re.findall(r'"pattern": "((?:[^"\\]|\\.)*)"', json.dumps(config.AgentConfig.model_json_schema())))
    assert {json.loads(f'"{pattern}"') for pattern in patterns} == set(explain._PATTERNS)
    teacher = "{kind: mlflow, name: m, uri: 'models:/a/1', digest: 'sha256:12'}"
    message = error_message(file, re.sub(r"\{kind: python.*\}", teacher, GOOD))
    assert "teachers.0.digest: 'sha256:12' must be 'sha256:' and 64 hexadecimal digits" in message


def test_auc_drop_is_refused_for_many_actions(file: Path) -> None:
    three = GOOD.replace("actions: [stay, move]", "actions: [stay, move, turn]")
    message = error_message(file, three.replace("{psi: 0.25}", "{psi: 0.25, auc_drop: 0.05}"))
    assert "watch.thresholds.auc_drop: an agent with 3 actions is judged by its accuracy" in message
    assert message.startswith("19: ") and "write `accuracy_drop` instead" in message
    for text in (three.replace("{psi: 0.25}", "{accuracy_drop: 0.05}"), GOOD.replace("psi: 0.25", "auc_drop: 0.05")):
        file.write_text(text)
        assert load_file(file).watch.thresholds.shifted_columns == 1


def test_all_errors_are_reported_at_once(file: Path) -> None:
    message = error_message(
        file, GOOD.replace("toy:rows", "toy").replace("weight: 2", "weight: -2").replace("psi", "pzi")
    )
    assert [line.split(": ")[:2] for line in message.split("\n")] == [
        ["4", "observations.source"],
        ["12", "teachers.0.weight"],
        ["19", "watch.thresholds.pzi"],
    ]


@pytest.mark.parametrize(
    ("cascade", "message"),
    [
        ("{timeout: 1s}", "one of `below` and `agreement`, and here are neither"),
        ("{below: 0.5, agreement: 0.98}", "one of `below` and `agreement`, and here are both"),
        ("{below: 0.5, audit: 0.1}", "`audit` belongs to `agreement`"),
        ("{agreement: 1.0}", "agreement"),
    ],
)
def test_a_cascade_has_one_rule(file: Path, cascade: str, message: str) -> None:
    file.write_text(GOOD + f"runtime: {{cascade: {cascade}}}\n")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_file(file)
    file.write_text(GOOD + "runtime: {cascade: {agreement: 0.98}}\n")
    promise = load_file(file).runtime.cascade.promise
    assert (promise.agreement, promise.confidence) == (0.98, 0.95)


def test_a_misspelt_required_key_is_both_missing_and_unknown(file: Path) -> None:
    message = error_message(file, GOOD.replace("agent: toy", "agnet: toy")).split("\n")
    assert message == ["1: agent: is required and missing", "1: agnet: unknown key; did you mean 'agent'?"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agent: toy\nactions: [a, b\n", "3: is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("agent: toy\nactions: a: b\n", "2: is not YAML: mapping values are not allowed here"),
        ("agent: toy\nx: !!python/object/apply:os.system [ls]\n", "2: is not YAML: could not determine a constructor"),
        ("agent: toy\nsince: 2013-13-01\n", "2: is not YAML: month must be in 1..12"),
        ("", "1: must be a mapping with the keys agent, description, actions,"),
        ("- agent: toy\n", "1: must be a mapping with the keys agent, description, actions,"),
    ],
)
def test_a_file_that_is_not_a_mapping_is_refused_with_its_line(file: Path, text: str, message: str) -> None:
    assert error_message(file, text).startswith(message)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read .*No such file"):
        load_file(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_file(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("agent: té".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml: cannot be read .*utf-8"):
        load_file(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("90s", timedelta(seconds=90)),
        ("5m", timedelta(minutes=5)),
        ("1.5h", timedelta(minutes=90)),
        ("7d", timedelta(days=7)),
        ("2 w", timedelta(days=14)),
        ("' 0.5d '", timedelta(hours=12)),
    ],
)
def test_durations(file: Path, text: str, length: timedelta) -> None:
    file.write_text(GOOD.replace("delay: 1d", f"delay: {text}"))
    assert load_file(file).outcomes.delay == length


# --------------------------------------------------------------------------- by name


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "toy.yaml").write_text(GOOD)
    (tmp_path / "outside.yaml").write_text(GOOD.replace("agent: toy", "agent: outside"))
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(folder))
    return folder


def test_an_agent_is_loaded_by_name(agents: Path) -> None:
    assert load("toy").agent == "toy"


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "", ".", "toy.yaml", "TOY", "toy\n", "a/../toy"])
def test_a_name_leads_to_no_other_folder(agents: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no agent"):
        load(name)


def test_a_near_name_is_suggested(agents: Path) -> None:
    with pytest.raises(ConfigError, match=r"no agent 'tyo' in .*did you mean 'toy'\?.*STILLHOUSE_AGENTS"):
        load("tyo")
    with pytest.raises(ConfigError, match="there are: toy"):
        load("recommender")


def test_a_folder_without_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="there are: none"):
        load("toy")


def test_the_name_must_be_the_files(agents: Path) -> None:
    (agents / "other.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"other\.yaml: agent: is 'toy'; it must be the file's name, 'other'"):
        load("other")


# --------------------------------------------------------------------------- paths


def test_all_data_is_stored_under_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path))
    before = dict(os.environ)
    environment = embedded_environment()
    assert environment["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/store/mlflow/mlflow.db"
    assert environment["PREFECT_HOME"] == f"{tmp_path}/store/prefect"
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert dict(os.environ) == before
    assert not (tmp_path / "store").exists()


def test_a_users_prefect_profile_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "profiles.toml").write_text("")
    assert "PREFECT_HOME" not in embedded_environment()


def test_the_default_folders_are_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STILLHOUSE_HOME", raising=False)
    monkeypatch.delenv("STILLHOUSE_AGENTS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert config.home() == tmp_path / ".stillhouse"
    assert config.agents_folder() == tmp_path / "agents"


# --------------------------------------------------------------------------- compression

FP32, DYNAMIC, STATIC = Fp32(method="fp32"), DynamicInt8(method="int8_dynamic"), StaticInt8(method="int8_static")
UNITS = PruneUnits(method="prune_units", ratio=0.29)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ((FP32,), "fp32"),
        ((DYNAMIC,), "int8_dynamic"),
        ((STATIC,), "int8_static"),
        ((StaticInt8(method="int8_static", table_bits=4),), "int8_static_tables4"),
        ((WeightOnly(method="weights"),), "weights8"),
        ((WeightOnly(method="weights", bits=4),), "weights4"),
        ((UNITS,), "units29"),
        ((UNITS, FP32), "units29"),
        ((UNITS, DYNAMIC), "units29+int8_dynamic"),
        ((PruneLayers(method="prune_layers"), UNITS, STATIC), "layers50+units29+int8_static"),
        ((PruneHeads(method="prune_heads"),), "heads50"),
        ((PruneColumns(method="prune_columns"),), "columns25"),
        ((LowRank(method="low_rank", ratio=0.125),), "rank12_5"),
        ((Vocabulary(method="vocabulary"), HashedRows(method="hashed_rows")), "vocabulary50+hashed50"),
        ((PruneUnits(method="prune_units", recover_epochs=9),), "units50"),
    ],
)
def test_variants_have_names(recipe: Recipe, name: str) -> None:
    assert recipe_name(recipe) == name


def test_settings_outside_the_name_add_four_characters_of_a_hash() -> None:
    with_kept_layers = [STATIC.model_copy(update={"keep": (name,)}) for name in ("a", "b")]
    names = [recipe_name((step,)) for step in (*with_kept_layers, StaticInt8(method="int8_static", per_channel=False))]
    assert len(set(names)) == 3 and all(re.fullmatch(r"int8_static-[0-9a-f]{4}", name) for name in names)
    by_layer = PruneUnits(method="prune_units", ratios={"up": 0.3})
    assert re.fullmatch(r"units50-[0-9a-f]{4}\+int8_static-[0-9a-f]{4}", recipe_name((by_layer, with_kept_layers[0])))
    assert recipe_name((by_layer, STATIC)) == f"{recipe_name((by_layer,))}+int8_static"
    assert recipe_name((by_layer,)) == recipe_name((PruneUnits(method="prune_units", ratios={"up": 0.3}),))


def test_a_recipe_is_structural_steps_and_then_a_number_format() -> None:
    assert structural_steps((UNITS, DYNAMIC)) == (UNITS,) and number_format((UNITS, DYNAMIC)) == DYNAMIC
    assert structural_steps((UNITS,)) == (UNITS,) and number_format((UNITS,)) == FP32
    assert structural_steps((FP32,)) == () and number_format((FP32,)) == FP32


def test_by_default_three_formats_and_a_search(file: Path) -> None:
    begin, end = GOOD.index("compression:"), GOOD.index("windows:")
    file.write_text(GOOD[:begin] + GOOD[end:])
    compression = load_file(file).compression
    assert compression == Compression() and compression.recipes == ((FP32,), (DYNAMIC,), (STATIC,))
    assert compression.search == Search() and set(Search().steps) == {
        "int8_dynamic",
        "int8_static",
        "weights",
        "prune_units",
        "prune_heads",
        "prune_layers",
        "prune_columns",
        "low_rank",
        "vocabulary",
        "length",
        "hashed_rows",
    }
    assert compression.search is not None and compression.search.time == timedelta(minutes=5)


def test_a_search_may_be_left_out_and_a_step_stand_without_brackets(file: Path) -> None:
    file.write_text(GOOD.replace("{candidates: 9}", "null").replace("{method: fp32}, ", ""))
    compression = load_file(file).compression
    assert compression.search is None and [recipe_name(recipe) for recipe in compression.recipes] == [
        "units50+int8_static"
    ]


@pytest.mark.parametrize(
    "recipes", [[[FP32, UNITS]], [[DYNAMIC, STATIC]], [[UNITS, FP32, UNITS]], [[]], [], [[UNITS], [UNITS, FP32]]]
)
def test_recipes_out_of_order_empty_or_alike_are_refused(recipes: list[list[object]]) -> None:
    with pytest.raises(ValidationError):
        Compression.model_validate({"recipes": recipes})


@pytest.mark.parametrize(
    ("settings", "right"),
    [
        ({"tolerance": 0.0}, False),
        ({"tolerance": 1.0}, True),
        ({"tolerance": 1.1}, False),
        ({"recipes": [{"method": "int8_static", "calibration_rows": 99}]}, False),
        ({"recipes": [{"method": "int8_static", "calibration_rows": 100, "ranges": "percentile"}]}, True),
        ({"recipes": [{"method": "int8_static", "ranges": "widest"}]}, False),
        ({"recipes": [{"method": "int8_dynamic", "reduce_range": "auto"}]}, True),
        ({"recipes": [{"method": "int8_dynamic", "reduce_range": "sometimes"}]}, False),
        ({"recipes": [{"method": "int8_dynamic", "table_bits": 2}]}, False),
        ({"recipes": [{"method": "weights", "block": 64, "compute": "int8"}]}, True),
        ({"recipes": [{"method": "weights", "block": 48}]}, False),
        ({"recipes": [{"method": "low_rank", "ratio": 0}]}, False),
        ({"recipes": [{"method": "low_rank", "ratios": {"a": 0}}]}, True),
        ({"recipes": [{"method": "prune_layers", "ratios": {"a": 0.5}}]}, False),
        ({"search": {"steps": []}}, False),
        ({"search": {"steps": ["fp32"]}}, False),
        ({"search": {"recover_epochs": 0}}, True),
        ({"search": {"recover_epochs": -1}}, False),
        ({"search": None}, True),
    ],
)
def test_ranges_of_the_compressions_settings(settings: dict[str, object], right: bool) -> None:
    if right:
        Compression.model_validate(settings)
    else:
        with pytest.raises(ValidationError):
            Compression.model_validate(settings)


def test_the_page_of_the_agent_file_names_every_key() -> None:
    docs = Path(__file__).parent.parent / "docs"
    page = next(file for file in (docs / "reference" / "agent-file.md", docs / "agent-file.md") if file.exists())
    text = page.read_text(encoding="utf-8")
    schema = config.AgentConfig.model_json_schema()
    keys = {key for part in (schema, *schema["$defs"].values()) for key in part.get("properties", {})}
    assert not {key for key in keys if f"`{key}`" not in text}


# --------------------------------------------------------------------------- texts

TEXTS = GOOD.replace("number: {type: number}", "message: {type: text, max_length: 500}").replace(
    "{kind: tabular, widths: [16]}", "{kind: text, encoder: {type: convolution}, widths: [16]}"
)


def test_an_agent_that_reads_texts(file: Path) -> None:
    file.write_text(TEXTS)
    toy = load_file(file)
    assert toy.observations.texts == ("message",) and toy.observations.numbers == ("temp",)
    assert isinstance(toy.student, TextStudent) and toy.student.encoder == ConvolutionEncoder(type="convolution")
    assert not toy.student.initialised_by_teacher


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (
            "kind: text, encoder: {type: convolution}",
            "kind: tabular",
            "13: student.kind: 'tabular' reads no text, and 'message' is a text column: take 'text'",
        ),
        (
            "message: {type: text, max_length: 500}",
            "message: {type: number}",
            "13: student.kind: 'text' needs a text column, and `observations` has none: take 'tabular'",
        ),
        (
            "max_length: 500",
            "max_lenght: 500",
            "8: observations.columns.message.max_lenght: unknown key; did you mean 'max_length'?",
        ),
        (
            "type: convolution",
            "type: convolutoin",
            "13: student.encoder.type: 'convolutoin' is not known; did you mean 'convolution'?",
        ),
        (
            "{type: convolution}",
            "{type: transformer, width: 10}",
            "13: student.encoder.heads: 4 does not divide the width, 10",
        ),
        (
            "{type: convolution}",
            "{type: convolution, sizes: [2, 2]}",
            "13: student.encoder.sizes: names 2 more than once",
        ),
        (
            'kind: python, name: forest, target: "toy:Forest", weight: 2}\nstudent: {kind: text,',
            'kind: mlflow, name: forest, uri: "models:/forest/1"}\nstudent: {kind: text, initialise: teacher,',
            "13: student.initialise: 'teacher' needs a teacher of kind 'sentence_encoder', or of kind 'python' or "
            "'module' with a method `text_encoder`: write 'none'",
        ),
        (
            "origin:",
            '"message: words": {type: number}\n    origin:',
            "3: observations: column names ['message: words'] are reserved for the measures of a text",
        ),
    ],
)
def test_errors_about_texts(file: Path, right: str, wrong: str, message: str) -> None:
    assert TEXTS.count(right) == 1
    assert error_message(file, TEXTS.replace(right, wrong)) == message


def test_the_sections_of_a_union_by_their_tags() -> None:
    assert list(tagged(config.LeafTeacher))[:4] == ["python", "module", "mlflow", "endpoint"]
    assert tagged(config.AnyStudent)["text"] is config.TextStudent
    with pytest.raises(TypeError, match="Budgets has no key `kind`, `type` or `method`"):
        tagged(config.TextStudent | config.Budgets)
