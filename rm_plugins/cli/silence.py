"""Silences what other libraries print that a user can do nothing about, and prints warnings in one line."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rm_plugins.printable import printable

_LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "huggingface_hub",
    "multiprocess",
    "peft",
    "torch",
    "torchao",
    "transformers",
    "trl",
)
_LOGGERS = ("bitsandbytes", "torchao")
"""Those that warn of kernels which only make a computation faster."""


@contextmanager
def _environment() -> Iterator[None]:
    """Within it, libraries that are imported read these settings; what the user has set is kept."""
    settings = {"TRANSFORMERS_VERBOSITY": "error", "TRL_EXPERIMENTAL_SILENCE": "1"}
    if sys.stderr is not None and sys.stderr.isatty():
        # Seconds: a bar that would only flash up, such as that of a small model's weights, stays away.
        settings["TQDM_DELAY"] = "1"
    else:
        settings |= dict.fromkeys(("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"), "1")
    added = [name for name in settings if name not in os.environ]
    os.environ.update({name: settings[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _levels() -> Iterator[None]:
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in before:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        if not sys.warnoptions:
            for library in _LIBRARIES:
                warnings.filterwarnings("ignore", module=rf"{re.escape(library)}(\.|$)")
        yield


@contextmanager
def _plain_format() -> Iterator[None]:
    """Within it, a warning is printed without the file and the line that raised it."""
    before = warnings.formatwarning
    # Not `showwarning`: tests and other callers that record warnings replace that one.
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {printable(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def silenced_libraries() -> ExitStack:
    """Warnings, loading bars and reports of libraries are not printed until it is closed; what an environment variable asks for is."""
    stack = ExitStack()
    for silenced in (_environment(), _levels(), _warnings(), _plain_format()):
        stack.enter_context(silenced)
    return stack
