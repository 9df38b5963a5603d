"""Terminal output of the commands: rich without markup, so that no text from data acts as style, emoji or control."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import rich.table
from rich.console import Console as RichConsole
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from stillhouse.errors import StillhouseError
from stillhouse.interrupts import answer_interrupts
from stillhouse.shown import LineFormatter, escape_line, escape_paragraphs
from stillhouse.stations import StationTimes, format_duration_left, listening

__all__ = ["Console", "Table", "report_errors", "show_log", "show_stations"]

_SECONDS_BETWEEN_LINES = 10.0  # of a progress report in a file or pipe


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


def show_log(console: Console, logger: str) -> None:
    """Print what a logger says from level ``INFO`` on, above a line that shows progress, until the process ends."""
    named = logging.getLogger(logger)
    named.setLevel(logging.INFO)
    named.addHandler(_ConsoleHandler(console))


class _ConsoleHandler(logging.Handler):
    """Prints messages to a console, one line each."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console
        self.setFormatter(LineFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), style="dim", soft_wrap=True)


@contextmanager
def show_stations(console: Console, title: str, file: Path | None = None) -> Iterator[None]:
    """Show the stations that the work inside reports, with the time that is left.

    In a terminal one line, which is gone at the end. In a file or pipe, a line at the end of each station that has
    parts, and one every ten seconds in between; stations without parts are in the log of a flow run.

    :param title: what runs, such as ``refresh flights``.
    :param file: where the times of the last run are stored, by which the time left is estimated.
    """
    times = StationTimes(file)
    times.enter("starting")
    display = _StationLine(console, title, times) if console.is_terminal else _StationLog(console, title, times)
    with display, listening(display.enter):
        yield
    times.finish()


class _StationLine:
    """The current station on the last line of a terminal."""

    def __init__(self, console: Console, title: str, times: StationTimes) -> None:
        self._title, self._times = title, times
        self._spinner = Spinner("dots")
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def enter(self, station: str, done: int, total: int | None) -> None:
        self._times.enter(station, done, total)

    def _render(self) -> Spinner:
        self._spinner.update(text=Text(_describe(self._title, self._times), no_wrap=True, overflow="ellipsis"))
        return self._spinner


class _StationLog:
    """A line for each station with parts, in a file or pipe."""

    def __init__(self, console: Console, title: str, times: StationTimes) -> None:
        self._console, self._title, self._times = console, title, times
        self._printed_at = float("-inf")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def enter(self, station: str, done: int, total: int | None) -> None:
        self._times.enter(station, done, total)
        now = self._times.elapsed()
        if total and done and (done >= total or now - self._printed_at >= _SECONDS_BETWEEN_LINES):
            self._printed_at = now
            self._console.print(_describe(self._title, self._times), soft_wrap=True)
            self._console.file.flush()


def _describe(title: str, times: StationTimes) -> str:
    """The line of a station: ``refresh flights: compress, 12 s, about 5 s left``."""
    parts = f" ({times.parts})" if times.parts else ""
    texts = [f"{title}: {times.station}{parts}", f"{times.elapsed():.0f} s"]
    return escape_line(", ".join([*texts, *filter(None, [format_duration_left(times.seconds_left())])]))


@contextmanager
def report_errors(advice: Mapping[str, str], otherwise: str) -> Iterator[None]:
    """Print errors that a user can correct to standard error, with exit code 1 and without a traceback.

    These are every :class:`~stillhouse.errors.StillhouseError`, and files and folders that cannot be read or written.
    Standard output accepts any text, whatever its encoding. Ctrl-C is answered at once, see
    :mod:`stillhouse.interrupts`.

    :param advice: how to go on after Ctrl-C, by the command on the command line.
    :param otherwise: the same for all other commands.
    """
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LineFormatter())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    try:
        with answer_interrupts(advice.get(words[0], otherwise) if words else otherwise):
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
