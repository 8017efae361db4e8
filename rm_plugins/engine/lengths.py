"""Row lengths at which a model's computation may change."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LONGEST = 24  # as a power of two
_OF_LENGTHS = re.compile(r"position|window|chunk|block|length|seq|context|span|bucket|stride")


class LengthClasses:
    """Classes of row lengths: a check of one row is assumed to hold for all rows of its class.

    Classes end at the powers of two and at every length in the model's configuration, such as a window or a block. The number of positions
    it was trained on is one of them: beyond it, the frequencies of rotary embeddings may change.

    Args:
        config: The model's configuration.

    >>> from transformers import LlamaConfig
    >>> classes = LengthClasses(LlamaConfig(max_position_embeddings=40))
    >>> classes.of(33) == classes.of(40), classes.of(40) == classes.of(41), classes.of(41) == classes.of(64)
    (True, False, True)
    """

    def __init__(self, config: PretrainedConfig) -> None:
        named = {length for length in _lengths(config.get_text_config().to_dict()) if 1 < length < 2**_LONGEST}
        self.ends = sorted(named | {2**power for power in range(_LONGEST)})

    def of(self, length: int) -> int:
        """The number of a length's class."""
        return bisect_left(self.ends, length)


def _lengths(config: Mapping[str, Any], named: bool = False) -> Iterator[int]:
    """The integers whose key, or the key of a mapping or list around them, names a length."""
    for key, value in config.items():
        is_named = named or bool(_OF_LENGTHS.search(str(key)))
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, Mapping):
                yield from _lengths(item, is_named)
            elif is_named and type(item) is int:
                yield item
