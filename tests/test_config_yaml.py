"""YAML that expands, recurses, nests too deeply or is too large is refused early, with the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.config import load_file
from stillhouse.config.bounded_yaml import read_yaml
from stillhouse.errors import ConfigError

NESTED_ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
NESTED_MERGES = (
    NESTED_ALIASES.replace("[x, x, x, x, x, x, x, x, x, x]", "{x: 1, y: 2}")
    .replace("[*", "{<<: [*")
    .replace("]\n", "]}\n")
)

REFUSED = {
    "an alias of aliases of aliases": (NESTED_ALIASES, "5: is not YAML: more than 30,000 values"),
    "the same by merges": (NESTED_MERGES, "more than 30,000 values"),
    "a list that contains itself": ("a: 1\nb: &b [*b]\n", "2: is not YAML: contains itself"),
    "a mapping that contains itself": ("&a {b: {c: *a}}\n", "1: is not YAML: contains itself"),
    "deep brackets": ("[" * 10_000, "nested deeper than 40 levels"),
    "deep braces": ("{a: " * 100_000, "nested deeper than 40 levels"),
    "deep dashes": ("- " * 1_000, "nested deeper than 40 levels"),
    "deep lines": ("\n".join(" " * depth + "a:" for depth in range(300)), "nested deeper than 40 levels"),
    "deep by aliases": ("a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(60)), "deeper than"),
    "a number in base 60": ("agent: " + "1:" * 5_000 + "1", "1: is not YAML: a number of more than 300 characters"),
    "a long number": ("agent: " + "9" * 5_000, "a number of more than 300 characters"),
    "a time that is none": ("a: !!timestamp soon", "1: is not YAML: the value 'soon' does not fit its tag"),
    "a NUL": ('agent: "\x00"', "1: is not YAML: unacceptable character"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_yaml_that_expands_or_recurses_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_file(file)
    assert (
        message in str(refused.value) and str(refused.value).startswith(f"{file}:") and "\n" not in str(refused.value)
    )


def test_ordinary_aliases_are_accepted() -> None:
    _, content = read_yaml("number: &n {type: number}\ncolumns: {a: *n, b: *n, c: {<<: *n, lower: 0}}\n")
    number = {"type": "number"}
    assert content == {"number": number, "columns": {"a": number, "b": number, "c": {"type": "number", "lower": 0}}}


def test_a_file_that_is_too_large_or_not_a_file_is_not_read(tmp_path: Path) -> None:
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (512 * 1024 + 1))
    with pytest.raises(ConfigError, match=r"huge\.yaml: is larger than 524,288 bytes"):
        load_file(huge)
    for path in ("/dev/zero", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"cannot be read \(it is not a file\)"):
            load_file(path)


def test_of_many_errors_the_first_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text("".join(f"key{i}: 1\n" for i in range(300)), encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_file(file)
    lines = str(refused.value).splitlines()
    assert len(lines) == 21 and lines[-1] == "and more: these are the first 20 errors"


def test_a_key_that_yaml_takes_for_a_boolean_is_text_and_a_value_is_not() -> None:
    assert read_yaml("{on: on, no: yes, true: 'off'}")[1] == {"on": True, "no": True, True: "off"}
