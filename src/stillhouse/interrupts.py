"""Ctrl-C in a terminal: one line at once that says how to go on, and a process that ends within seconds.

By itself, Python notices Ctrl-C only when the running C call returns (the fit of a teacher), then unwinds through every
library that is on the stack, each with its own traceback, and waits for threads and child processes. Here a thread
answers as soon as the operating system has delivered the signal. The main thread still unwinds, so that locks are
released and a flow run is reported as ended; what has not ended after :data:`GRACE_S` is left, as after a kill, which
all that stillhouse stores survives.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["EXIT_CODE", "GRACE_S", "answer_interrupts", "end_silently_on_interrupt"]

EXIT_CODE = 128 + signal.SIGINT
"""The exit code of a process that SIGINT ended: 130."""

GRACE_S = 3.0
"""How long the main thread may take to unwind (s); a second Ctrl-C ends the process at once."""

_SHOW_CURSOR = "\x1b[?25h"


@contextmanager
def answer_interrupts(advice: str) -> Iterator[None]:
    """Answer Ctrl-C (SIGINT) in this context by one line on standard error, and exit with :data:`EXIT_CODE`.

    Handler and wake-up descriptor that the code inside installs take precedence, such as those of a server that drains.
    Outside of the main thread, where Python delivers no signals, nothing is installed.

    :param advice: how to go on, such as ``run the same command again``.
    :raises SystemExit: after Ctrl-C, whatever the code inside raised.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    answer = _Answer(advice)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    previous_handler = signal.signal(signal.SIGINT, answer.interrupt)
    previous_wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=answer.wait, args=(reading,), name="interrupts", daemon=True).start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or answer.is_due:
            answer.give()
            raise SystemExit(EXIT_CODE) from None
        raise
    finally:
        if not answer.is_given:
            signal.set_wakeup_fd(previous_wakeup)
            signal.signal(signal.SIGINT, previous_handler)
            os.close(writing)  # ends the thread


def end_silently_on_interrupt() -> None:
    """For a worker process: end at Ctrl-C without a traceback, as the terminal sends SIGINT to it as well."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Answer:
    """Gives the answer once, whichever thread notices the signal first."""

    def __init__(self, advice: str) -> None:
        self._advice = advice
        self._lock = threading.Lock()
        self.is_due = False
        self.is_given = False

    def interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle SIGINT in the main thread: unwind it."""
        self.is_due = True
        raise KeyboardInterrupt

    def wait(self, reading: int) -> None:
        """Answer the first SIGINT that the operating system writes to the pipe, end the process at the second.

        Returns when the pipe is closed.
        """
        is_second = False
        with os.fdopen(reading, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] != signal.SIGINT:
                    continue
                if is_second:
                    _leave()
                self.give()
                is_second = True

    def give(self) -> None:
        """Print the line and start the time limit, once: who calls later returns when the line is written."""
        with self._lock:
            if self.is_given:
                return
            logging.disable(logging.CRITICAL)
            _write_line(f"interrupted: {self._advice}")
            _silence()
            self.is_given = True
            limit = threading.Timer(GRACE_S, _leave)
            limit.daemon = True
            limit.start()


def _write_line(text: str) -> None:
    """Write to standard error itself: its Python object may be locked by the interrupted thread."""
    on_terminal = os.isatty(2)
    os.write(2, (f"\n{_SHOW_CURSOR}{text}\n" if on_terminal else f"{text}\n").encode("utf-8", "backslashreplace"))


def _silence() -> None:
    """Let nothing follow the line: no traceback on standard error, and no progress display on a terminal."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    if os.isatty(1):
        os.dup2(nowhere, 1)


def _leave() -> None:
    """End this process and its workers now."""
    if "multiprocessing" in sys.modules:
        from multiprocessing import active_children

        for child in active_children():
            child.terminate()
    os._exit(EXIT_CODE)
