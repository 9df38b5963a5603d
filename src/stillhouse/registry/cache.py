"""A bounded cache for values that this process has read from MLflow or written to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

__all__ = ["Cache"]

_Value = TypeVar("_Value")


class Cache(Generic[_Value]):
    """A thread-safe cache that evicts the least recently used value first.

    Store only values that never change under their key, such as an artifact of a finished run or an address.

    >>> cache = Cache[int](max_size=2)
    >>> [cache.get(key, lambda: len(key)) for key in ("a", "bb", "ccc")]
    [1, 2, 3]
    >>> cache.pop("bb"), cache.pop("a")
    (2, None)

    :param max_size: number of values that the cache holds.
    """

    def __init__(self, max_size: int = 256) -> None:
        self._max_size, self._lock = max_size, Lock()
        self._values: OrderedDict[Hashable, _Value] = OrderedDict()

    def get(self, key: Hashable, read: Callable[[], _Value]) -> _Value:
        """Return the value of ``key``; on a miss call ``read`` and store its result. An exception is not stored."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = read()
        self.put(key, value)
        return value

    def put(self, key: Hashable, value: _Value) -> None:
        """Store ``value`` under ``key``."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._max_size:
                self._values.popitem(last=False)

    def pop(self, key: Hashable) -> _Value | None:
        """Remove ``key`` and return its value, or None if the cache does not hold it."""
        with self._lock:
            return self._values.pop(key, None)
