"""The forward pass of a whole training batch, with gradients, over rows of any lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.utils import ModelOutput

from rm_plugins.engine.prefix_cache import is_decoder
from rm_plugins.engine.readout import LastToken, Readout
from rm_plugins.engine.rows_forward import RowsForward
from rm_plugins.engine.tensors import on_device
from rm_plugins.engine.token_head import mean_log_prob
from rm_plugins.errors import UnsupportedError
from rm_plugins.rendering.rendering import Read

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class BatchOutput(ModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """The model's outputs for N rows.

    Args:
        logits: The head's outputs, float [N, num_labels].
        logprobs: Mean log-probability of each completion's tokens, float [N], NaN where it was not requested. If no row requested it, None;
            with sharded weights, None if no starts were given.
    """

    logits: torch.Tensor | None = None
    logprobs: torch.Tensor | None = None


class BatchForward(RowsForward):
    """Lets a sequence classifier take a whole batch in one call: ``model(rows=[[token ids], ...])`` returns a `BatchOutput`.

    How the rows run is described at `rm_plugins.engine.rows_forward.RowsForward`. A call may also request the log-probabilities of
    completions: ``completion_starts`` then holds the number of prompt tokens of each row, or None for a row without a request. A model
    without a language-model head raises `UnsupportedError`.

    Args:
        model: The classifier; its ``forward`` is replaced by this object, which passes every other call to the original.
        max_tokens: The token budget of a micro-batch; by default chosen for the model's device.
        share_prefixes: Whether rows may share the computation of common beginnings.
        language_model_head: Maps hidden states [n, size] to vocabulary logits [n, vocabulary]. It may have a method ``gathered``, which
            returns such a function for one call; with sharded weights, all processes call it together.
        readout: The tokens of a row that a decoder's head scores; by default the last token as defined by `read`. A row that is scored at
            several tokens has as many consecutive rows in `BatchOutput.logits`.
        read: Which token of a row is its last, as for `rm_plugins.engine.readout.LastToken.of`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        max_tokens: int | None = None,
        *,
        share_prefixes: bool = True,
        language_model_head: Callable[[torch.Tensor], torch.Tensor] | None = None,
        readout: Readout | None = None,
        read: Read = "before-padding",
    ) -> None:
        self.readout = readout
        self.read = read
        self.language_model_head = language_model_head
        super().__init__(model, max_tokens, share_prefixes=share_prefixes, decoder=is_decoder(model))

    def _outputs(self, rows: Sequence[Sequence[int]], starts: Sequence[int | None] | None) -> BatchOutput:
        if starts is not None and (self.language_model_head is None or not self._decoder):
            raise UnsupportedError(f"{type(self.model).__name__} has no language-model head, so it gives no log-probabilities.")
        asked = starts is not None and (self._shards is not None or any(start is not None for start in starts))
        return self._run(rows, starts or [None] * len(rows), packs=self.packs, whole=self.whole, asked=asked)

    def _compared_values(self, rows: Sequence[Sequence[int]], *, packs: bool = False, whole: bool = False) -> torch.Tensor:
        logits = self._run(rows, [None] * len(rows), packs=packs, whole=whole).logits
        assert logits is not None
        return logits

    def _run(
        self,
        rows: Sequence[Sequence[int]],
        starts: Sequence[int | None],
        *,
        packs: bool,
        whole: bool,
        asked: bool = False,
    ) -> BatchOutput:
        count = len(rows)
        rows, batches = self._micro_batches(rows, packs=packs, whole=whole)
        starts = [*starts, *[None] * (len(rows) - count)]
        if not self._decoder:
            outputs = [(group, of_rows) for group, of_rows, _ in self._states(rows, batches)]
            return BatchOutput(logits=_in_order(outputs, count))
        # A head whose weights are sharded apart from the model's root is gathered once.
        head = getattr(self.language_model_head, "gathered", lambda: self.language_model_head)() if asked else None
        logits: list[tuple[list[int], torch.Tensor]] = []
        logprobs: list[tuple[list[int], torch.Tensor]] = []
        readout = self.readout or LastToken.of(self.model, self.read)  # read now: a trainer may change the padding token
        for group, hidden, places in self._states(rows, batches):
            with self._shortage.noted():
                reads = [
                    (row, tokens[position])
                    for row, tokens in zip(group, places, strict=True)
                    for position in readout.positions(rows[row])
                ]
                scored = self.model.score(hidden[torch.stack([token for _, token in reads])])
                if head is not None and self._shards is not None:
                    # The sum of nothing: with it, every process gathers the head's weights and reduces their gradients.
                    scored = scored + head(hidden[:0]).sum().to(scored.dtype)
                logits.append(([row for row, _ in reads], scored))
                if head is not None:
                    logprobs.append((group, self._logprobs(head, rows, starts, group, hidden, places)))
        return BatchOutput(logits=_in_order(logits, count), logprobs=_in_order(logprobs, count) if logprobs else None)

    def _logprobs(
        self,
        head: Callable[[torch.Tensor], torch.Tensor],
        rows: Sequence[Sequence[int]],
        starts: Sequence[int | None],
        group: Sequence[int],
        hidden: torch.Tensor,
        places: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Mean log-probability of each row's tokens from its start on, float [rows of the group], NaN for rows without a start."""
        means = []
        for row, tokens in zip(group, places, strict=True):
            start = starts[row]
            if start is None or len(tokens) <= max(start, 1):
                means.append(hidden.new_tensor(torch.nan, dtype=torch.float32))
                continue
            first = max(start, 1)  # nothing predicts a row's first token
            targets = on_device(rows[row][first : len(tokens)], hidden.device)
            means.append(
                mean_log_prob(head, hidden[tokens[first - 1 : -1]], targets, self.model.config.get_text_config().vocab_size)
            )
        return torch.stack(means)


def _in_order(batches: Sequence[tuple[list[int], torch.Tensor]], count: int) -> torch.Tensor:
    """Concatenate tensors of groups of rows, in the order of the row numbers, without rows from number `count` on."""
    rows = np.array([row for group, _ in batches for row in group])
    order = np.argsort(rows, kind="stable")[: (rows < count).sum()]
    return torch.cat([values for _, values in batches])[torch.from_numpy(order).to(batches[0][1].device)]
