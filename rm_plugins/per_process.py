"""A value that each process makes for itself, such as a thread, a connection, or a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from rm_plugins.one_thread import OneThread

Value = TypeVar("Value")


class PerProcess(Generic[Value]):
    """Holds a value that is made on first use, and again in a process that was forked after that. Any thread may ask for it.

    A copy or a pickle of the holder is empty.

    >>> held = PerProcess[list[int]]()
    >>> held.made(list) is held.made(list)
    True
    >>> held.take(), held.value
    ([], None)
    """

    def __init__(self) -> None:
        self._one_thread = OneThread()
        self._made: list[tuple[int, Value]] = []
        """The values, each with the id of the process that made it, the last one first. Those of parents are kept: freeing them here
        would close or unregister what the parents still use."""

    @property
    def value(self) -> Value | None:
        """The value of this process; None if there is none."""
        return next((value for process, value in self._made[:1] if process == os.getpid()), None)

    def made(self, make: Callable[[], Value]) -> Value:
        """The value of this process, made with `make` if there is none."""
        with self._one_thread:
            value = self.value
            if value is None:
                value = make()
                self._made.insert(0, (os.getpid(), value))
            return value

    def take(self) -> Value | None:
        """Remove the value of this process and return it, for closing; None if there is none."""
        with self._one_thread:
            return None if self.value is None else self._made.pop(0)[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return PerProcess, ()
