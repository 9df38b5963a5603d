"""Escape text from data for display, so that nothing in it acts as markup, format or control sequence.

Data is everything that a user's rows, files, servers and names contain. Each output has its own syntax:

=========================  ==========================================================================
:func:`escape_line`        terminal and logs, on one line
:func:`escape_paragraphs`  the same, with its line breaks: a message of several lines
:func:`escape_markdown`    Markdown: cells of a table, list items, sentences (Prefect, MLflow)
:func:`escape_code`        Markdown: between backticks
:func:`escape_label`       labels of a matplotlib figure, where ``$…$`` would be a formula
:func:`wrap_label`         the same, on several lines
:class:`LineFormatter`     messages in a log
=========================  ==========================================================================

JSON and YAML need no such function: their writers escape the text.
"""

from __future__ import annotations

import logging
import re
import textwrap
import unicodedata

__all__ = [
    "LineFormatter",
    "escape_code",
    "escape_label",
    "escape_line",
    "escape_markdown",
    "escape_paragraphs",
    "wrap_label",
]

_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_JOINERS = "\u200c\u200d"  # used in Persian and in emoji; harmless
_HIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
_MARKDOWN_CHARACTERS = re.compile(r"[\\`*\[\]~|$]|(?<![^\W_])_|_(?![^\W_])|^[-+=#]")
_LIST_NUMBER = re.compile(r"^(\d+)([.)])")


def escape_line(value: object) -> str:
    r"""``value`` as text on one line: control and format characters, direction marks and lone surrogates escaped.

    >>> escape_line("two\nlines, \x1b[31mred\x1b[0m, \u202ebackwards, [/INST] a\\b | ñ")
    'two\\nlines, \\x1b[31mred\\x1b[0m, \\u202ebackwards, [/INST] a\\b | ñ'
    """
    text = str(value)
    return text if text.isascii() and text.isprintable() else "".join(map(_escape, text))


def escape_paragraphs(value: object) -> str:
    r"""``value`` as by :func:`escape_line`, but with its line feeds unchanged.

    >>> escape_paragraphs("one\ntwo\x07")
    'one\ntwo\\x07'
    """
    return "\n".join(map(escape_line, str(value).split("\n")))


def escape_markdown(value: object) -> str:
    r"""``value`` on one line as plain text in Markdown and HTML, also in a table cell. A line break becomes a space.

    >>> escape_markdown("search|browse <img src=x> *bold* plain_name http://a.b")
    'search\\|browse &lt;img src=x&gt; \\*bold\\* plain_name http&#58;//a.b'
    """
    text = (
        escape_line(re.sub(r"\s*[\r\n]+\s*", " ", str(value)))
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )
    text = _LIST_NUMBER.sub(r"\1\\\2", _MARKDOWN_CHARACTERS.sub(r"\\\g<0>", text))
    return text.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def escape_code(value: object) -> str:
    r"""``value`` on one line as a code span, also in a table cell.

    >>> escape_code("a|b"), escape_code("`"), escape_code("")
    ('`a\\|b`', '`` ` ``', '')
    """
    text = escape_line(value).replace("|", r"\|")
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def escape_label(value: object) -> str:
    r"""``value`` on one line for matplotlib, which would otherwise print text between two dollars as a formula.

    >>> escape_label("price in $, tax in $")
    'price in \\$, tax in \\$'
    """
    return escape_line(value).replace("$", r"\$")


def wrap_label(value: object, width: int) -> str:
    r"""``value`` as by :func:`escape_label`, on as many lines of at most ``width`` characters as it needs.

    >>> wrap_label("a title that is not cut", 12)
    'a title that\nis not cut'
    """
    return "\n".join(map(escape_label, textwrap.wrap(escape_line(value), width)))


class LineFormatter(logging.Formatter):
    """Log formatter that prints each message on one line, whatever data it contains; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return escape_line(super().formatMessage(record))


def _escape(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN_CATEGORIES or character in _JOINERS:
        return character
    if character in _ESCAPES:
        return _ESCAPES[character]
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
