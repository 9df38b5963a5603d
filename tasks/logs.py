"""The log of a run: what the engine says about its work, without a line for each task that ended well.

The engine logs with Python's :mod:`logging`, below the logger ``stillhouse``. Prefect shows such a logger on the page
of a run if it has Prefect's handler, as ``PREFECT_LOGGING_EXTRA_LOGGERS`` would give it. The level is Prefect's own
(``PREFECT_LOGGING_LEVEL``). At ``DEBUG`` nothing is left out.
"""

from __future__ import annotations

import logging

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_LOGGING_LEVEL

from stillhouse.errors import StillhouseError

__all__ = ["ENGINE_LOGGER", "configure_logs"]

ENGINE_LOGGER = "stillhouse"
_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
_FINISHED_WELL = "Finished in state Completed("


def configure_logs() -> None:
    """Show the engine's log on the pages of runs, and leave out tracebacks of user errors and tasks that ended well."""
    for name in _RUN_LOGGERS:
        logging.getLogger(name).addFilter(_WithoutUserTracebacks())
    logging.getLogger("prefect.flow_runs").addFilter(_WithoutHook())
    logging.getLogger("prefect.task_runs").addFilter(_WithoutFinishedTasks())
    engine, level = logging.getLogger(ENGINE_LOGGER), logging.getLevelName(PREFECT_LOGGING_LEVEL.value())
    if not any(isinstance(handler, APILogHandler) for handler in engine.handlers):
        engine.addHandler(_RunPageHandler())
    if isinstance(level, int) and level < logging.WARNING:  # else warnings are shown, as by every library
        engine.setLevel(level)


class _RunPageHandler(APILogHandler):
    """Send records to the page of the run that they are logged in; records of other threads are only printed."""

    def emit(self, record: logging.LogRecord) -> None:
        if FlowRunContext.get() is not None or TaskRunContext.get() is not None:
            super().emit(record)


class _WithoutUserTracebacks(logging.Filter):
    """Log a user error as its one-sentence message; other errors keep their traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], StillhouseError):
            record.exc_info = None
        return True


class _WithoutHook(logging.Filter):
    """Leave out that the hook ran which every flow has, unless Prefect's level is DEBUG."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_about_hook = record.getMessage().startswith(("Running hook 'keep_result'", "Hook 'keep_result' finished"))
        return PREFECT_LOGGING_LEVEL.value() == "DEBUG" or not is_about_hook


class _WithoutFinishedTasks(logging.Filter):
    """Leave out that a task ended well, unless Prefect's level is DEBUG: its state is on the page of the run."""

    def filter(self, record: logging.LogRecord) -> bool:
        return PREFECT_LOGGING_LEVEL.value() == "DEBUG" or not record.getMessage().startswith(_FINISHED_WELL)
