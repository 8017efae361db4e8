"""Keeps warnings of other libraries out of a training's output where its user can do nothing about them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

_WARNINGS = (
    "`(is_)?gradient_checkpointing(_enable|_disable)?` is deprecated",  # TRL sets it and switches it around generation; peft asks for it
    "'pin_memory' argument is set as true but no accelerator is found",  # transformers' default, on a CPU
)
_MESSAGES = {
    "transformers.trainer": ("The tokenizer has new PAD/BOS/EOS tokens",),  # TRL has the configuration follow the tokenizer
    "transformers.trainer_utils": ("The tokenizer has new PAD/BOS/EOS tokens",),
    "transformers.modeling_utils": ("LOAD REPORT", "Some weights of"),  # `load_classifier` names the weights that matter
}
"""By logger: what its messages contain."""


@contextmanager
def without_noise(*, disable_bars: bool = False) -> Iterator[None]:
    """Within it, these warnings and messages are not shown, nor transformers' progress bars if `disable_bars`."""
    filters = {name: _Without(texts) for name, texts in _MESSAGES.items()}
    had_bars = transformers_logging.is_progress_bar_enabled()
    for name, one in filters.items():
        logging.getLogger(name).addFilter(one)
    if disable_bars:
        transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for message in _WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for name, one in filters.items():
            logging.getLogger(name).removeFilter(one)
        if disable_bars and had_bars:
            transformers_logging.enable_progress_bar()


class _Without(logging.Filter):
    def __init__(self, texts: tuple[str, ...]) -> None:
        super().__init__()
        self._texts = texts

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(text in message for text in self._texts)
