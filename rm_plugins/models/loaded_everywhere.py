"""Loads a model in every process, where transformers would load it in one only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_ONLY_ONE_LOADS = "FSDP_CPU_RAM_EFFICIENT_LOADING"


@contextmanager
def loaded_everywhere() -> Iterator[None]:
    """Within it, ``from_pretrained`` reads the weights in every process.

    With FSDP's ``cpu_ram_efficient_loading``, it reads them in one process of a machine, and sharding sends them to the others. A model
    that is not sharded, such as a reward in the training of a policy, would stay without weights there.
    """
    before = os.environ.get(_ONLY_ONE_LOADS)
    if before is None:
        yield
        return
    os.environ[_ONLY_ONE_LOADS] = "false"
    try:
        yield
    finally:
        os.environ[_ONLY_ONE_LOADS] = before
