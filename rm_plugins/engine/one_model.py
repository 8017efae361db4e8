"""A model is run by one thread at a time, whatever holds it."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from torch import nn

from rm_plugins.one_thread import OneThread

_of_models: WeakKeyDictionary[nn.Module, OneThread] = WeakKeyDictionary()
_looking = threading.Lock()


def one_thread_of(model: nn.Module) -> OneThread:
    """Lets one thread at a time run a model, switch its mode, or make it one of its variants.

    Args:
        model: The model; all that hold the same one share what they get.
    """
    with _looking:
        return _of_models.setdefault(model, OneThread())
