"""Terminal output of the commands: rich without markup, so that no text from data acts as style, emoji or control."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any, NoReturn

import rich.table
from rich.console import Console as RichConsole
from rich.text import Text

from stillhouse.errors import StillhouseError
from stillhouse.interrupts import answer_interrupts
from stillhouse.shown import LineFormatter, escape_line, escape_paragraphs

__all__ = ["Console", "Table", "report_errors"]


class Console(RichConsole):
    """A console that prints text literally; styles are passed separately, as ``style=``, or by :meth:`done`."""

    def __init__(self, **more: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **more)

    def render_str(self, text: str, **more: Any) -> Text:
        """``text`` with control characters and direction marks escaped; line feeds stay."""
        return super().render_str(escape_paragraphs(text), **more)

    def print_indented(self, text: object, columns: int, **more: Any) -> None:
        """Print ``text`` as one paragraph that is indented by ``columns`` and wrapped at the width of the console."""
        lines = Text(escape_line(text)).wrap(self, self.width - columns, overflow="fold")
        for line in lines:
            line.rstrip()
            self.print(Text(" " * columns) + line, soft_wrap=True, **more)

    def done(self, text: str) -> None:
        """Print one line about a passed check or a finished step, after a green tick; never wrapped."""
        self.print(Text.assemble(("✓", "green"), " ", escape_paragraphs(text)), soft_wrap=True)


class Table(rich.table.Table):
    """A table without a box. Line breaks in the data are escaped; long cells are folded, never cut off."""

    def __init__(self, *headers: str, **more: Any) -> None:
        super().__init__(*headers, box=None, **more)
        for column in self.columns:
            column.overflow = "fold"  # a name or an id is useless if it is cut off

    def add_row(self, *cells: Any, **more: Any) -> None:
        """Add a row; cells of text are printed literally."""
        super().add_row(*(escape_line(cell) if isinstance(cell, str) else cell for cell in cells), **more)


@contextmanager
def report_errors(advice: str) -> Iterator[None]:
    """Print errors that a user can correct to standard error, with exit code 1 and without a traceback.

    These are every :class:`~stillhouse.errors.StillhouseError`, and files and folders that cannot be read or written.
    Standard output accepts any text, whatever its encoding. Ctrl-C is answered at once, see
    :mod:`stillhouse.interrupts`.

    :param advice: how to go on after Ctrl-C.
    """
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LineFormatter())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with answer_interrupts(advice):
            yield
    except StillhouseError as error:
        _exit_with(type(error).__name__, str(error))
    except BrokenPipeError:  # the reader of the pipe has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.strerror is None:
            raise
        path = f"{error.filename}: " if error.filename is not None else ""
        _exit_with("OSError", f"{path}{error.strerror}")


def _exit_with(kind: str, message: str) -> NoReturn:
    Console(stderr=True).print(Text(kind, style="red"), end=": ")
    print(escape_paragraphs(message), file=sys.stderr)
    sys.exit(1)
