"""Call a user's code with a time limit, and report its exceptions in one sentence."""

from __future__ import annotations

import contextvars
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from stillhouse.errors import PartError, StillhouseError

__all__ = ["call_user_code"]


def call_user_code(what: str, limit: timedelta | None, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, in a thread of its own if there is a limit.

    Python cannot stop a thread: one that exceeds the limit keeps running until this process ends.

    >>> call_user_code("teacher 'rules' on 2 rows", timedelta(seconds=5), sum, [1, 2])
    3

    :param what: the beginning of an error text: who is called on what.
    :raises PartError: if the function raises, or is not done within ``limit``. A :class:`StillhouseError` passes.
    """
    if limit is None:
        return _wrap_errors(what, function, *arguments)
    done, results, errors = threading.Event(), list[Any](), list[BaseException]()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            results.append(context.run(_wrap_errors, what, function, *arguments))
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name=what, daemon=True).start()
    if not done.wait(limit.total_seconds()):
        raise PartError(
            f"{what} is not done after {limit.total_seconds():g} s: it hangs, or needs a longer `timeout` in the agent "
            "file"
        )
    if errors:
        raise errors[0]
    return results[0]


def _wrap_errors(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """:raises PartError: with the file and line, if the function raises anything but a :class:`StillhouseError`."""
    try:
        return function(*arguments)
    except StillhouseError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        location = f"{Path(last.filename).name}, line {last.lineno}"
        raise PartError(f"{what} fails: {type(error).__name__}: {error} ({location})") from error
