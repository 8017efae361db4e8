"""The forward pass of a whole training batch, with gradients, over rows of any lengths."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers.utils import ModelOutput

from rm_plugins.engine.engine import costs_of, default_max_tokens, scores_differ
from rm_plugins.engine.lengths import LengthClasses
from rm_plugins.engine.packing import PACKED, Packing, attends_packed, attention_window
from rm_plugins.engine.plan import micro_batches
from rm_plugins.engine.prefix_cache import is_causal, is_decoder
from rm_plugins.engine.readout import LastToken, Readout
from rm_plugins.engine.rotary import changing_frequencies
from rm_plugins.engine.tensors import padded
from rm_plugins.engine.transformers_internals import attention_as
from rm_plugins.engine.undisturbed import undisturbed
from rm_plugins.errors import UnsupportedError
from rm_plugins.rendering.rendering import Read
from rm_plugins.rendering.tokenize import common_beginning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OVER_BUDGET = 1.25
"""A pack may exceed the budget by this factor, because short common beginnings are counted once but not always shared."""


@dataclass
class BatchOutput(ModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """The model's outputs for N rows.

    Args:
        logits: The head's outputs, float [N, num_labels].
        logprobs: Mean log-probability of each completion's tokens, float [N], NaN where it was not requested; None if no row requested it.
    """

    logits: torch.Tensor | None = None
    logprobs: torch.Tensor | None = None


class BatchForward:
    """Lets a sequence classifier take a whole batch in one call: ``model(rows=[[token ids], ...])``.

    Wrappers such as DDP require a single call, however many micro-batches it runs. A decoder whose attention can be replaced runs over
    packed rows (`rm_plugins.engine.packing`): without padding, and with shared prefixes stored once. Any other model runs over
    padded micro-batches sorted by length. Scores and gradients equal those of the rows computed one by one.

    This is checked on a few rows: for every new class of row lengths, and again after 10, 100, ... calls, separately for training and
    evaluation. If the results differ because the model depends on other rows or on the length of the batch (batch normalization, NEFTune's
    noise), all rows run at once, padded to the longest, as trainers usually do.

    Args:
        model: The classifier; its ``forward`` is replaced by this object, which passes every other call to the original.
        max_tokens: The token budget of a micro-batch; by default chosen for the model's device.
        share_prefixes: Whether rows may share the computation of common beginnings.
        language_model_head: Maps hidden states [n, size] to vocabulary logits [n, vocabulary].
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
        self.model = model
        self.readout = readout
        self.read = read
        self.max_tokens = max_tokens
        self.share_prefixes = share_prefixes
        self.language_model_head = language_model_head
        self._decoder = is_decoder(model)
        self.packs = self._decoder and is_causal(model) and attends_packed(model)
        self.whole = False
        self._window = attention_window(model)
        self._classes = LengthClasses(model.config)
        self._frequencies = changing_frequencies(model.config)
        self._calls = {True: 0, False: 0}
        self._compared: set[tuple[bool, int, int]] = set()
        self._attention: str = model.config.get_text_config()._attn_implementation
        self._forward = model.forward
        model.forward = self

    def attention(self) -> AbstractContextManager[None]:
        """The context in which a batch must run and its gradients must be computed."""
        return attention_as(self.model, PACKED) if self.packs else nullcontext()

    def __call__(
        self,
        *args: Any,
        rows: Sequence[Sequence[int]] | None = None,
        completion_starts: Sequence[int | None] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The outputs for `rows`, or those of the model's own ``forward`` if `rows` is None.

        Args:
            args: The model's own arguments.
            rows: Token ids per row, [N] non-empty lists without padding.
            completion_starts: The number of prompt tokens of each row whose completion's log-probability is requested, else None.
            kwargs: The model's own arguments.

        Raises:
            UnsupportedError: Log-probabilities are requested from a model without a language-model head.
        """
        if rows is None:
            return self._forward(*args, **kwargs)
        if self.packs and max(map(len, rows)) > self._window:
            self.stop_packing(f"a row is longer than its sliding window of {self._window} tokens")
        if self._frequencies is not None and not self.whole and max(map(len, rows)) > self._frequencies.beyond:
            self.stop_splitting("the frequencies of its rotary positions depend on the longest row")
        if self._is_due(rows):
            self._check(rows)
        starts = completion_starts if completion_starts is not None else [None] * len(rows)
        if completion_starts is not None and (self.language_model_head is None or not self._decoder):
            raise UnsupportedError(f"{type(self.model).__name__} has no language-model head, so it gives no log-probabilities.")
        return self._run(rows, starts, packs=self.packs, whole=self.whole)

    def _run(self, rows: Sequence[Sequence[int]], starts: Sequence[int | None], *, packs: bool, whole: bool) -> BatchOutput:
        groups = [[*range(len(rows))]] if whole else self._groups(rows)
        if not self._decoder:
            batches = [(group, self._forward(**self._padded(rows, group)).logits) for group in groups]
            return BatchOutput(logits=_in_order(batches))
        logits: list[tuple[list[int], torch.Tensor]] = []
        logprobs: list[tuple[list[int], torch.Tensor]] = []
        readout = self.readout or LastToken.of(self.model, self.read)  # read now: a trainer may change the padding token
        for group, hidden, places in self._packed(rows) if packs else self._hidden(rows, groups):
            reads = [
                (row, tokens[position])
                for row, tokens in zip(group, places, strict=True)
                for position in readout.positions(rows[row])
            ]
            logits.append(([row for row, _ in reads], self.model.score(hidden[torch.stack([token for _, token in reads])])))
            if any(start is not None for start in starts):
                logprobs.append((group, self._logprobs(rows, starts, group, hidden, places)))
        return BatchOutput(logits=_in_order(logits), logprobs=_in_order(logprobs) if logprobs else None)

    def _packed(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], torch.Tensor, list[torch.Tensor]]]:
        """For each micro-batch: its row numbers, hidden states [tokens, size], and the positions of each row's tokens in them."""
        backbone = getattr(self.model, self.model.base_model_prefix)
        for group, packing in self._packs(rows):
            arguments = {"position_ids": packing.positions, "use_cache": False, "packing": packing}
            with attention_as(self.model, PACKED):
                hidden = backbone(input_ids=packing.ids, **arguments).last_hidden_state[0]
            yield group, hidden, [packing.tokens_of(place) for place in range(len(group))]

    def _packs(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Packing]]:
        """Rows that run together: neighbours in the order of their tokens, because these share the longest prefixes."""
        budget = self._budget()
        pack: list[int] = []
        tokens = 0
        for row in sorted(range(len(rows)), key=lambda row: tuple(rows[row])):
            new = len(rows[row]) - (common_beginning(rows[pack[-1]], rows[row]) if pack and self.share_prefixes else 0)
            if pack and tokens + new > budget:
                yield from self._packings(rows, pack)
                pack, tokens, new = [], 0, len(rows[row])
            pack.append(row)
            tokens += new
        yield from self._packings(rows, pack)

    def _packings(self, rows: Sequence[Sequence[int]], pack: list[int]) -> Iterator[tuple[list[int], Packing]]:
        """The pack, or its halves if it is too long because not every common prefix is shared, as with many turns of one dialogue."""
        packing = Packing([rows[row] for row in pack], share_prefixes=self.share_prefixes, device=self.model.device)
        if len(pack) == 1 or packing.ids.shape[1] <= _OVER_BUDGET * self._budget():
            yield pack, packing
        else:
            middle = len(pack) // 2
            yield from self._packings(rows, pack[:middle])
            yield from self._packings(rows, pack[middle:])

    def _hidden(
        self, rows: Sequence[Sequence[int]], groups: Sequence[list[int]]
    ) -> Iterator[tuple[list[int], torch.Tensor, list[torch.Tensor]]]:
        """The same as `_packed`, for padded micro-batches."""
        backbone = getattr(self.model, self.model.base_model_prefix)
        for group in groups:
            inputs = self._padded(rows, group)
            with attention_as(self.model, self._attention):
                hidden = backbone(**inputs, use_cache=False).last_hidden_state
            starts = range(0, hidden.shape[0] * hidden.shape[1], hidden.shape[1])
            places = [torch.arange(start, start + len(rows[row])) for start, row in zip(starts, group, strict=True)]
            yield group, hidden.flatten(0, 1), places

    def _groups(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        return micro_batches([len(row) for row in rows], self._budget(), costs_of(self.model).launch)

    def _padded(self, rows: Sequence[Sequence[int]], group: Sequence[int]) -> dict[str, torch.Tensor]:
        pad_token_id = self.model.config.get_text_config().pad_token_id
        return padded([rows[row] for row in group], pad_token_id or 0, self.model.device)

    def _budget(self) -> int:
        if not self._decoder and not self._pads():
            return 0  # without a padding token, an encoder can only run one row at a time
        if self.max_tokens is None:
            self.max_tokens = default_max_tokens(self.model)
        return self.max_tokens

    def _pads(self) -> bool:
        return self.model.config.get_text_config().pad_token_id is not None

    def _logprobs(
        self,
        rows: Sequence[Sequence[int]],
        starts: Sequence[int | None],
        group: Sequence[int],
        hidden: torch.Tensor,
        places: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Mean log-probability of each row's tokens from its start on, float [rows of the group], NaN for rows without a start."""
        assert self.language_model_head is not None
        means = []
        for row, tokens in zip(group, places, strict=True):
            start = starts[row]
            if start is None or len(tokens) <= max(start, 1):
                means.append(hidden.new_tensor(torch.nan, dtype=torch.float32))
                continue
            first = max(start, 1)  # nothing predicts a row's first token
            targets = torch.tensor(rows[row][first : len(tokens)], device=hidden.device)
            means.append(-cross_entropy(self.language_model_head(hidden[tokens[first - 1 : -1]]).float(), targets))
        return torch.stack(means)

    def _is_due(self, rows: Sequence[Sequence[int]]) -> bool:
        """Whether the rows of this call are checked: for new classes of lengths, and at calls 1, 10, 100, ...

        Later checks are needed because a dependence between rows may have weights that start at zero.
        """
        training = self.model.training
        self._calls[training] += 1
        calls = self._calls[training]
        key = (training, *(self._classes.of(bound(map(len, rows))) for bound in (min, max)))
        is_new = key not in self._compared
        self._compared.add(key)
        return not self.whole and (is_new or calls == 10 ** (len(str(calls)) - 1)) and (self._decoder or self._pads())

    @torch.no_grad()
    def _check(self, rows: Sequence[Sequence[int]]) -> None:
        """Compare a few rows between the ways to run them; disable the ways that give other scores."""
        by_length = sorted(rows, key=len)
        # Several rows, so that a model that mixes rows is noticed.
        few = sorted([by_length[0], by_length[-1], *rows[:2], rows[0][1:] or rows[0]], key=len)
        ends = [few[0], few[-1]]
        with undisturbed(self.model) as has_drawn:
            together, alone = self._logits(ends, whole=True), torch.cat([self._logits([row], whole=True) for row in ends])
            if has_drawn():
                problem: str | None = "it draws random numbers besides dropout, as NEFTune does"
            else:
                problem = self._difference(together, alone)
            if problem is not None:
                self.stop_splitting(problem)
            elif self.packs and (problem := self._problem_of_packing(few)):
                self.stop_packing(problem)

    def _problem_of_packing(self, rows: Sequence[Sequence[int]]) -> str | None:
        try:
            return self._difference(self._logits(rows, packs=True), self._logits(rows))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # only a trial shows whether a model supports another attention
            return f"{type(error).__name__}: {error}"

    def _logits(self, rows: Sequence[Sequence[int]], *, packs: bool = False, whole: bool = False) -> torch.Tensor:
        logits = self._run(rows, [None] * len(rows), packs=packs, whole=whole).logits
        assert logits is not None
        return logits

    def _difference(self, logits: torch.Tensor, expected: torch.Tensor) -> str | None:
        scores, plain = (values.double().cpu().numpy() for values in (logits, expected))
        return scores_differ(scores, plain, exact=self._is_exact())

    def stop_packing(self, problem: str) -> None:
        """Pad rows from now on, with a warning.

        Args:
            problem: Why they cannot be packed.
        """
        self._stop_packing()
        self._warn(
            f"cannot be trained on packed rows ({problem}), so rows are padded instead. Results stay exact; training is slower if prompts "
            "are shared."
        )

    def stop_splitting(self, problem: str) -> None:
        """Run all rows of a batch at once from now on, padded to the longest, with a warning.

        Args:
            problem: How a row depends on the others.
        """
        self._stop_packing()
        self.whole = True
        self._warn(
            f"does not compute each row independently ({problem}), so all rows of a batch run at once, padded to the longest, as in "
            "TRL's trainer. A row's reward may depend on its batch."
        )

    def _stop_packing(self) -> None:
        self.packs = False
        self.model.config.get_text_config()._attn_implementation = self._attention

    def _warn(self, what: str) -> None:
        warnings.warn(f"{type(self.model).__name__} {what}", stacklevel=2)

    def _is_exact(self) -> bool:
        exact = self.model.dtype in (torch.float32, torch.float64)
        return exact and not torch.is_autocast_enabled(self.model.device.type)


def _in_order(batches: Sequence[tuple[list[int], torch.Tensor]]) -> torch.Tensor:
    """Concatenate tensors of groups of rows, in the order of the row numbers."""
    order = np.argsort([row for group, _ in batches for row in group], kind="stable")
    return torch.cat([values for _, values in batches])[torch.from_numpy(order).to(batches[0][1].device)]
