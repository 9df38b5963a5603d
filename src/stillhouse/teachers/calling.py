"""A user's code is called: for so long and no longer, and what it raises is told in one sentence."""

from __future__ import annotations

import contextvars
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from stillhouse.errors import PartError, StillhouseError

__all__ = ["call"]


def call(what: str, limit: timedelta | None, function: Callable[..., Any], *given: Any) -> Any:
    """``function(*given)``, in a thread of its own where there is a limit.

    A thread cannot be ended from outside: one that is over its time is left behind, and ends with this process.

    :param what: who is called for what, as the beginning of a message: ``"teacher 'rules' on 50 rows"``.
    :raises PartError: if it raises, or is not done within ``limit``.
    """
    if limit is None:
        return _told(what, function, *given)
    done, found, raised = threading.Event(), list[Any](), list[BaseException]()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            found.append(context.run(_told, what, function, *given))
        except BaseException as error:  # handed over to the caller
            raised.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name=what, daemon=True).start()
    if not done.wait(limit.total_seconds()):
        raise PartError(
            f"{what} is not done after {limit.total_seconds():g} s: it hangs, or needs a longer `timeout` in the agent "
            "file"
        )
    if raised:
        raise raised[0]
    return found[0]


def _told(what: str, function: Callable[..., Any], *given: Any) -> Any:
    try:
        return function(*given)
    except StillhouseError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        raise PartError(f"{what} fails: {type(error).__name__}: {error} ({place})") from error
