"""What this process has read or written before and need not ask MLflow for again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

__all__ = ["Remembered"]

_Value = TypeVar("_Value")


class Remembered(Generic[_Value]):
    """Values by key, the least recently used forgotten first; threads may share it.

    Only for what cannot change under its key: artifacts of a run that nobody writes any more, an address.

    :param most: values that are kept.
    """

    def __init__(self, most: int = 256) -> None:
        self._most, self._lock = most, Lock()
        self._values: OrderedDict[Hashable, _Value] = OrderedDict()

    def get(self, key: Hashable, read: Callable[[], _Value]) -> _Value:
        """The value of ``key``, read where it is not known; what ``read`` raises is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = read()
        self.put(key, value)
        return value

    def put(self, key: Hashable, value: _Value) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)

    def pop(self, key: Hashable) -> _Value | None:
        """The value of ``key``, which is forgotten; None where there is none."""
        with self._lock:
            return self._values.pop(key, None)
