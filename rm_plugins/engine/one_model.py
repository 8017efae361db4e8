"""One lock for each model, shared by everything that runs it."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from torch import nn

from rm_plugins.one_thread import OneThread

_locks: WeakKeyDictionary[nn.Module, OneThread] = WeakKeyDictionary()
_locks_guard = threading.Lock()


def one_thread_of(model: nn.Module) -> OneThread:
    """The lock of a model: hold it to run the model, switch its mode, or activate a variant.

    Args:
        model: The model; every call with the same model returns the same lock.
    """
    with _locks_guard:
        return _locks.setdefault(model, OneThread())
