"""What commands print with: rich without markup, so that nothing in a user's data is a style, an emoji or a control."""

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
from stillhouse.shown import LineFormatter, paragraphs, shown

__all__ = ["Console", "Table", "plain_mistakes"]


class Console(RichConsole):
    """A console to which text is text: styles are given beside it, as ``style=`` or :meth:`done`."""

    def __init__(self, **more: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **more)

    def render_str(self, text: str, **more: Any) -> Text:
        """``text`` with control characters and direction marks escaped; its line feeds stay."""
        return super().render_str(paragraphs(text), **more)

    def done(self, text: str) -> None:
        """One line about what is in order or was done, behind a green tick; never wrapped."""
        self.print(Text.assemble(("✓", "green"), " ", paragraphs(text)), soft_wrap=True)


class Table(rich.table.Table):
    """A table without a box. Line breaks in the data are shown as text; what is too long is folded, never cut off."""

    def __init__(self, *headers: str, **more: Any) -> None:
        super().__init__(*headers, box=None, **more)
        for column in self.columns:
            column.overflow = "fold"  # a name or an id that is cut off says nothing

    def add_row(self, *cells: Any, **more: Any) -> None:
        """Cells that are text are shown as text."""
        super().add_row(*(shown(cell) if isinstance(cell, str) else cell for cell in cells), **more)


@contextmanager
def plain_mistakes() -> Iterator[None]:
    """A user's mistake is told in its own words on standard error, with exit code 1 and no traceback.

    So is a file or folder that cannot be read or written. Standard output takes any text, whatever its encoding.
    """
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LineFormatter())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except StillhouseError as error:
        _refuse(type(error).__name__, str(error))
    except BrokenPipeError:  # who read has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        _refuse("OSError", f"{where}{error.strerror}")


def _refuse(kind: str, message: str) -> NoReturn:
    Console(stderr=True).print(Text(kind, style="red"), end=": ")
    print(paragraphs(message), file=sys.stderr)
    sys.exit(1)
