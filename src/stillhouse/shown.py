"""Text from data as a reader may be shown it: nothing in it acts as markup, format or control sequence.

Data is whatever a user's rows, files, servers and names contain. Places that show it have a syntax of their own:

=========================  ==========================================================================
:func:`shown`              terminal and logs, on one line
:func:`paragraphs`         the same, with its line breaks: a message of several lines
:func:`markdown`           Markdown: cells of a table, list items, sentences (Prefect, MLflow)
:func:`code`               Markdown: between backticks
:func:`label`              a label of a matplotlib figure, where ``$…$`` would be a formula
:class:`LineFormatter`     messages of a log
=========================  ==========================================================================

JSON and YAML hold the text whole: their writers escape by themselves.
"""

from __future__ import annotations

import logging
import re
import unicodedata

__all__ = ["LineFormatter", "code", "label", "markdown", "paragraphs", "shown"]

_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_JOINERS = "\u200c\u200d"  # Persian and emoji are written with them; they move nothing
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_MARKDOWN = re.compile(r"[\\`*\[\]~|$]|(?<![^\W_])_|_(?![^\W_])|^[-+=#]")
_LIST = re.compile(r"^(\d+)([.)])")


def shown(value: object) -> str:
    r"""``value`` as text on one line: control and format characters, direction marks and lone surrogates escaped.

    >>> shown("two\nlines, \x1b[31mred\x1b[0m, \u202ebackwards, [/INST] a\\b | ñ")
    'two\\nlines, \\x1b[31mred\\x1b[0m, \\u202ebackwards, [/INST] a\\b | ñ'
    """
    text = str(value)
    return text if text.isascii() and text.isprintable() else "".join(map(_character, text))


def paragraphs(value: object) -> str:
    r"""``value`` as :func:`shown`, but with its line feeds as they are.

    >>> paragraphs("one\ntwo\x07")
    'one\ntwo\\x07'
    """
    return "\n".join(map(shown, str(value).split("\n")))


def markdown(value: object) -> str:
    r"""``value`` on one line, plain text to Markdown and HTML, also in a table's cell. A line break becomes a space.

    >>> markdown("search|browse <img src=x> *bold* plain_name http://a.b")
    'search\\|browse &lt;img src=x&gt; \\*bold\\* plain_name http&#58;//a.b'
    """
    text = (
        shown(re.sub(r"\s*[\r\n]+\s*", " ", str(value))).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )
    text = _LIST.sub(r"\1\\\2", _MARKDOWN.sub(r"\\\g<0>", text))
    return text.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def code(value: object) -> str:
    r"""``value`` on one line as a code span; also in a table's cell.

    >>> code("a|b"), code("`"), code("")
    ('`a\\|b`', '`` ` ``', '')
    """
    text = shown(value).replace("|", r"\|")
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def label(value: object) -> str:
    r"""``value`` on one line for matplotlib, which otherwise sets what stands between two dollars as a formula.

    >>> label("price in $, tax in $")
    'price in \\$, tax in \\$'
    """
    return shown(value).replace("$", r"\$")


class LineFormatter(logging.Formatter):
    """A message of a log on one line, whatever the data in it contains; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return shown(super().formatMessage(record))


def _character(one: str) -> str:
    if unicodedata.category(one) not in _HIDDEN or one in _JOINERS:
        return one
    if one in _NAMED:
        return _NAMED[one]
    number = ord(one)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
