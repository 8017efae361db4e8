"""The forward pass over completions, token by token, with gradients: log-probabilities and entropies, or values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.utils import ModelOutput

from rm_plugins.engine.packing import Packing
from rm_plugins.engine.prefix_cache import is_causal, is_decoder
from rm_plugins.engine.rows_forward import RowsForward
from rm_plugins.engine.tensors import on_device
from rm_plugins.engine.token_head import TokenHead, backbones, token_statistics
from rm_plugins.engine.transformers_internals import attention_as
from rm_plugins.engine.undisturbed import undisturbed
from rm_plugins.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMPARED = 32
"""How many tokens at the end of a row are compared."""


@dataclass
class TokenOutput(ModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """The outputs for the T completion tokens of all rows, in the order of the rows.

    Numbers are float32, or float64 for a model in float64.

    Args:
        log_probs: The log-probability of each token under softmax(logits / temperature), [T]; None for a classifier.
        entropy: The entropy of that distribution in nats, [T]; None for a classifier.
        hidden: The last hidden state in which each token was chosen, that of the token before it, [T, size]; None for a classifier, and
            for a model whose ``forward`` does not call its backbone.
        token_values: A classifier's score at the token before each token, [T]; None for a language model.
    """

    log_probs: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    token_values: torch.Tensor | None = None


class TokenForward(RowsForward):
    """Lets a decoder take completions in one call: ``model(rows=..., completion_starts=...)`` returns a `TokenOutput`.

    ``rows`` are prompts with their completions, [N] lists of token ids without padding, and ``completion_starts`` the number of prompt
    tokens of each, int [N], at least 1. A completion without tokens has no outputs. How the rows run is described at
    `rm_plugins.engine.rows_forward.RowsForward`; gradients must be computed in its context `attention`.

    A language model's logits are computed in chunks of tokens (`rm_plugins.engine.token_head.TokenHead`). In the first call, they are
    compared with the model's own logits of a few tokens. If they differ, the model's own logits are used, for padded rows.

    Args:
        model: A causal language model, or a decoder that classifies sequences with one label. Its ``forward`` is replaced by this object,
            which passes every other call to the original.
        max_tokens: The token budget of a micro-batch; by default chosen for the model's device.
        share_prefixes: Whether rows may share the computation of common beginnings.
        temperature: What the logits are divided by, more than 0.

    Raises:
        UnsupportedError: The model is neither, or its tokens attend to later ones.
    """

    outcome = "A token's log-probability or value"

    def __init__(
        self,
        model: PreTrainedModel,
        max_tokens: int | None = None,
        *,
        share_prefixes: bool = True,
        temperature: float = 1.0,
    ) -> None:
        self.temperature = temperature
        self._scores = is_decoder(model) and hasattr(model, "score")
        if self._scores and model.config.num_labels != 1:
            raise UnsupportedError(f"{type(model).__name__} has {model.config.num_labels} labels; token values need one.")
        if not self._scores and (model.get_output_embeddings() is None or model.config.is_encoder_decoder):
            raise UnsupportedError(
                f"{type(model).__name__} is neither a causal language model nor a decoder with a score head."
            )
        if not is_causal(model):
            raise UnsupportedError(
                f"{type(model).__name__}'s tokens attend to later ones, so it has no log-probabilities or values of tokens."
            )
        super().__init__(model, max_tokens, share_prefixes=share_prefixes, decoder=True)
        self._head = TokenHead(model, self._forward)
        self.own_logits = False
        self._head_compared = self._scores

    def _outputs(self, rows: Sequence[Sequence[int]], starts: Sequence[int | None] | None) -> TokenOutput:
        if starts is None or len(starts) != len(rows):
            raise ValueError(f"{len(rows)} rows need as many completion_starts.")
        for row, start in zip(rows, starts, strict=True):
            if start is None or not 1 <= start <= len(row):
                raise ValueError(f"A row of {len(row)} tokens cannot have a completion that starts at {start}.")
        return self._run(rows, [start for start in starts if start is not None], packs=self.packs, whole=self.whole)

    def _compared_values(self, rows: Sequence[Sequence[int]], *, packs: bool = False, whole: bool = False) -> torch.Tensor:
        """The log-probabilities or values of each row's last tokens; their means by row, [rows], in half precision."""
        starts = [min(len(row), max(1, len(row) - _COMPARED)) for row in rows]
        output = self._run(rows, starts, packs=packs, whole=whole)
        values = output.token_values if self._scores else output.log_probs
        assert values is not None
        if self._is_exact():
            return values
        sizes = [len(row) - start for row, start in zip(rows, starts, strict=True)]
        return torch.stack([of_row.mean() for of_row in torch.split(values, sizes)])

    def _run(self, rows: Sequence[Sequence[int]], starts: Sequence[int], *, packs: bool, whole: bool) -> TokenOutput:
        targets = on_device(
            [token for row, start in zip(rows, starts, strict=True) for token in row[start:]], self.model.device
        )
        if self.own_logits:
            return self._from_own_logits(rows, starts, targets, whole=whole)
        rows, starts, batches = self._token_batches(rows, starts, packs=packs, whole=whole)
        numbers: list[int] = []
        states = []
        offsets = np.cumsum([0, *(len(row) - start for row, start in zip(rows, starts, strict=True))])
        for group, hidden, places in self._states(rows, batches):
            with self._shortage.noted():
                before = [tokens[starts[row] - 1 : -1] for row, tokens in zip(group, places, strict=True)]
                numbers += [number for row in group for number in range(offsets[row], offsets[row + 1])]
                states.append(hidden[torch.cat(before).to(hidden.device)])
        hidden = torch.cat(states)[on_device(np.argsort(numbers), states[0].device)]
        if self._scores:
            values = self.model.score(hidden)[:, 0]
            # Copied, because FSDP2 warns of outputs that are views.
            return TokenOutput(token_values=values.to(torch.promote_types(values.dtype, torch.float32), copy=True))
        log_probs, entropy = self._head.statistics(hidden, targets, self.temperature, self._shards)
        return TokenOutput(log_probs=log_probs, entropy=entropy, hidden=hidden)

    def _token_batches(
        self, rows: Sequence[Sequence[int]], starts: Sequence[int], *, packs: bool, whole: bool
    ) -> tuple[Sequence[Sequence[int]], Sequence[int], Iterable[tuple[list[int], Packing | None]]]:
        """The rows, their starts and their micro-batches; an idle micro-batch has a row whose completion has no tokens."""
        every, batches = self._micro_batches(rows, packs=packs, whole=whole)
        return every, [*starts, *map(len, every[len(rows) :])], batches

    def _from_own_logits(
        self, rows: Sequence[Sequence[int]], starts: Sequence[int], targets: torch.Tensor, *, whole: bool
    ) -> TokenOutput:
        rows, starts, batches = self._token_batches(rows, starts, packs=False, whole=whole)
        sizes = [len(row) - start for row, start in zip(rows, starts, strict=True)]
        of_row = torch.split(targets, sizes)
        found: dict[int, tuple[torch.Tensor, ...]] = {}
        captured: list[torch.Tensor] = []
        hooks = [
            module.register_forward_hook(lambda _, inputs, output: captured.append(output.last_hidden_state))
            for module in backbones(self.model)
        ]
        try:
            for group, _ in batches:
                with attention_as(self.model, self._attention):
                    logits = self._forward(**self._padded(rows, group), use_cache=False).logits
                for place, row in enumerate(group):
                    before = slice(starts[row] - 1, len(rows[row]) - 1)
                    states = [hidden[place, before] for hidden in captured[-1:]]
                    found[row] = (*token_statistics(logits[place, before], of_row[row], self.temperature), *states)
        finally:
            for hook in hooks:
                hook.remove()
        return TokenOutput(*(torch.cat(parts) for parts in zip(*(found[row] for row in range(len(rows))), strict=True)))

    def _decide(self, rows: Sequence[Sequence[int]]) -> None:
        if not self._head_compared:
            self._compare_head(max(self._shared(rows), key=len)[: _COMPARED + 1])
        super()._decide(rows)

    @torch.no_grad()
    def _compare_head(self, row: Sequence[int]) -> None:
        """Compare the head's outputs for a row with those of the model's own logits, which are used if they differ."""
        if len(row) == 1:
            return  # nothing to compare yet
        self._head_compared = True
        targets = on_device(row[1:], self.model.device)
        with undisturbed(self.model):
            own = self._from_own_logits([row], [1], targets, whole=True)
        with undisturbed(self.model):  # once more, so that a model that draws random numbers draws the same
            try:
                output = self._run([row], [1], packs=False, whole=True)
                problem = self._difference(_both(output), _both(own))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # only a trial shows whether a model's logits follow from its last hidden states
                problem = f"{type(error).__name__}: {error}"
        problem = self._of_any(problem)
        if problem is not None:
            self.own_logits = True
            self._stop_packing()
            self._warn(
                f"has other logits than its head gives for its last hidden states ({problem}), so its own logits of whole rows are "
                "computed, padded. Results stay exact; training needs more memory and is slower if prompts are shared."
            )


def _both(output: TokenOutput) -> torch.Tensor:
    assert output.log_probs is not None and output.entropy is not None
    return torch.stack([output.log_probs, output.entropy])
