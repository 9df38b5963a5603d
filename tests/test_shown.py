"""Text from data is escaped in a terminal, in Markdown, in figures and in names of metrics."""

from __future__ import annotations

import doctest
import io
import logging
import re

import pytest
from rich.text import Text

from stillhouse import shown as module
from stillhouse.registry.metrics import metric_name
from stillhouse.shown import LineFormatter, escape_code, escape_label, escape_line, escape_markdown, escape_paragraphs
from stillhouse.terminal import Console, Table

SPECIAL_TEXTS = (
    "[/INST] north",
    "[red]b",
    "price[eur]",
    ":warning:",
    "a|b",
    "two\nlines",
    "car\rriage",
    "tab\t",
    "back\\slash",
    "\\[red]",
    "\x00",
    "\x1b[31mred",
    "\x07",
    "\x85",
    "\u2028",
    "\u2029",
    "\u202egnp.exe",
    "\u200b",
    "\ufeff",
    "\ud800",
    "{0}",
    "%s %(x)d",
    "${HOME}",
    "$x^2$",
    "<img src=x onerror=alert(1)>",
    "`code`",
    "**bold**",
    "# head",
    "../../etc",
    "http://a.b",
    "",
    " ",
    "é 日本 😀 می‌خواهم",
)
HIDDEN_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(module) == doctest.TestResults(failed=0, attempted=6)


@pytest.mark.parametrize("text", SPECIAL_TEXTS)
def test_nothing_hidden_is_left_and_nothing_readable_is_lost(text: str) -> None:
    for show in (escape_line, escape_markdown, escape_code, escape_label):
        assert not HIDDEN_CHARACTERS.search(show(text))
    if not HIDDEN_CHARACTERS.search(text):
        assert escape_line(text) == text
    escape_line(text).encode("utf-8")
    assert escape_paragraphs(f"{text}\n{text}").count("\n") == 1 + 2 * text.count("\n")


@pytest.mark.parametrize("text", SPECIAL_TEXTS)
def test_a_table_and_a_line_show_the_text_itself(text: str) -> None:
    file = io.StringIO()
    console, table = Console(file=file, width=200, force_terminal=True), Table("value", "next")
    table.add_row(text, "x")
    console.print(table)
    console.print(f"a value {text}", soft_wrap=True)
    console.done(f"a value {text}")
    written = file.getvalue().replace("\x1b[32m✓\x1b[0m", "✓")
    assert escape_line(text) in written and "Error" not in written
    bare = re.sub(r"\x1b\[1?m|\x1b\[0m", "", written)
    assert not HIDDEN_CHARACTERS.search(bare.replace("\n", ""))
    assert sum("x" in line and line.rstrip().endswith("x") for line in bare.splitlines()) >= 1


def test_a_narrow_table_folds_and_cuts_nothing_off() -> None:
    file = io.StringIO()
    headers, cells = ("a long heading", "evidence", "reasons"), ("evidence_student_outcomes", "a_column", "x" * 30)
    table = Table(*headers)
    table.add_row(*cells)
    Console(file=file, width=40).print(table)
    assert sorted(re.sub(r"\s", "", file.getvalue())) == sorted("".join(headers + cells).replace(" ", ""))


@pytest.mark.parametrize("text", SPECIAL_TEXTS)
def test_a_cell_of_markdown_stays_one_cell(text: str) -> None:
    for show in (escape_markdown, escape_code):
        line = f"| {show(text)} | next |"
        assert len(re.split(r"(?<!\\)\|", line)) == 4 and "\n" not in line
    assert not re.search(r"<[a-z/!]", escape_markdown(text))
    assert escape_markdown("[a](http://b)") == "\\[a\\](http&#58;//b)" and escape_markdown("**a**") == "\\*\\*a\\*\\*"


def test_a_label_is_no_formula() -> None:
    from matplotlib.cbook import is_math_text

    assert (
        is_math_text("$x^2$") and not is_math_text(escape_label("$x^2$")) and not is_math_text(escape_label(r"\$x$ $"))
    )


def test_metric_names_are_what_mlflow_takes_and_stay_apart() -> None:
    from mlflow.utils.validation import _validate_metric_name

    names = [
        metric_name(f"place={text}")
        for text in (*SPECIAL_TEXTS, "a_b", "a/b", "x" * 500, "x" * 501)
        if text != "\ud800"
    ]
    assert len(set(names)) == len(names) and max(map(len, names)) <= 100
    for name in names:
        _validate_metric_name(f"slice/{name}/auc")
    assert metric_name("origin=EWR") == "origin:EWR"


def test_a_message_of_a_log_stays_on_its_line() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s: %s", ("a", "two\nlines\x1b[31m"), None)
    assert LineFormatter("worker 1: %(message)s").format(record) == "worker 1: a: two\\nlines\\x1b[31m"


def test_styles_are_given_beside_the_text() -> None:
    file = io.StringIO()
    Console(file=file, width=80, force_terminal=True).print(Text.assemble(("name", "bold"), ": [red]x"))
    assert file.getvalue() == "\x1b[1mname\x1b[0m: [red]x\n"
