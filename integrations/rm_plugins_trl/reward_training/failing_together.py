"""An error of one process that ends all, which would otherwise wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rm_plugins.errors import RmPluginsError
from rm_plugins.processes import all_gathered

_PURPOSE = "whether one of them failed"


@contextmanager
def failing_together() -> Iterator[None]:
    """If the block raises in one process, all raise: the others would wait for it. All processes enter it together.

    Raises:
        RmPluginsError: Another process raised; of the same class, if its error is one of ours.
    """
    try:
        yield
    except Exception as error:
        ours = isinstance(error, RmPluginsError)
        told = str(error) if ours else f"{type(error).__name__}: {error}"
        all_gathered((type(error) if ours else RmPluginsError, told), _PURPOSE)
        raise
    for process, (kind, message) in enumerate(all_gathered((RmPluginsError, ""), _PURPOSE)):
        if message:
            raise kind(f"Process {process}: {message}")
