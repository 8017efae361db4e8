"""How many tokens each sample came to, which the scores of a batch do not say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from rm_plugins.rendering.render import Renderer
from rm_plugins.samples import Sample

__all__ = ["CountingRenderer", "counting_tokens"]

_lengths: ContextVar[dict[tuple[int, int], int] | None] = ContextVar("_lengths", default=None)
"""By the identities of renderer and sample, the tokens before truncation; one for each batch, as several may run at once."""


class CountingRenderer(Renderer):
    """A model's renderer that counts while it is asked to.

    Args:
        renderer: The model's own.
    """

    def __init__(self, renderer: Renderer) -> None:
        super().__init__(renderer.tokenizer, renderer.rendering)

    def untruncated_ids(self, samples: Sequence[Sample]) -> list[list[int]]:
        """As the model's own."""
        ids = super().untruncated_ids(samples)
        lengths = _lengths.get()
        if lengths is not None:
            lengths.update({(id(self), id(sample)): len(row) for sample, row in zip(samples, ids, strict=True)})
        return ids


@contextmanager
def counting_tokens(renderers: Sequence[CountingRenderer]) -> Iterator[Callable[[Sequence[Sample]], tuple[int, int]]]:
    """Count while the block runs; gives a function that says the tokens of samples, and how many of them were truncated."""
    lengths: dict[tuple[int, int], int] = {}

    def usage(samples: Sequence[Sample]) -> tuple[int, int]:
        tokens, truncated = 0, set[int]()
        for renderer in renderers:
            limit = renderer.rendering.max_length
            for row, sample in enumerate(samples):
                length = lengths.get((id(renderer), id(sample)), 0)
                tokens += length if limit is None else min(length, limit)
                if limit is not None and length > limit:
                    truncated.add(row)
        return tokens, len(truncated)

    token = _lengths.set(lengths)
    try:
        yield usage
    finally:
        _lengths.reset(token)
