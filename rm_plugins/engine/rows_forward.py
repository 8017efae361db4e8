"""Runs a model over rows of any lengths with gradients, in one call: packed without padding where its attention allows it."""

from __future__ import annotations

import inspect
import logging
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.utils.checkpoint import checkpoint

from rm_plugins.engine.budget import SMALLEST_BATCH_TOKENS, costs_of, default_max_tokens
from rm_plugins.engine.lengths import LengthClasses
from rm_plugins.engine.memory_shortage import Shortage, TogetherOutOfMemoryError, told_to_others
from rm_plugins.engine.packing import PACKED, Packing, attends_packed, attention_window
from rm_plugins.engine.packs import packs_of
from rm_plugins.engine.plan import micro_batches
from rm_plugins.engine.prefix_cache import is_causal
from rm_plugins.engine.rotary import changing_frequencies
from rm_plugins.engine.shards import Shards, shards_of
from rm_plugins.engine.tensors import padded
from rm_plugins.engine.tolerance import scores_differ
from rm_plugins.engine.transformers_internals import attention_as
from rm_plugins.engine.undisturbed import undisturbed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_ADVICE = "Train with gradient_checkpointing=True, a smaller max_batch_tokens, shorter rows or fewer rows per step."

_NO_ROW = 2**40
"""More than the tokens of any row."""


class RowsForward(ABC):
    """The base of what replaces a model's ``forward`` by one that takes rows: ``model(rows=[[token ids], ...])``.

    Wrappers such as DDP require a single call, however many micro-batches it runs. A decoder whose attention can be replaced runs over
    packed rows (`rm_plugins.engine.packing`): without padding, and with shared prefixes stored once. Any other model runs over
    padded micro-batches sorted by length. Outputs and gradients equal those of the rows computed one by one.

    This is checked on a few rows: for every new class of row lengths, and again after 10, 100, ... calls, separately for training and
    evaluation. If the results differ because the model depends on other rows or on the length of the batch (batch normalization, NEFTune's
    noise), all rows run at once, padded to the longest, as trainers usually do.

    If the weights are sharded over processes (`rm_plugins.engine.shards`), every process calls this object equally often, with any
    rows, or with none where another process has some. All processes then run the same modules in the same order, in the forward and in
    the backward. Three rules keep this true:

    - Every decision about how rows run is made from what all processes have exchanged. A check compares the same rows everywhere.
    - All processes run as many micro-batches as the one with the most. An idle one computes a short row whose outputs are dropped, so
      that it takes part in the backward with a gradient of zero.
    - Every process applies every head, even to an empty tensor of hidden states. So the same weights get gradients everywhere.

    If the device runs out of memory in a forward, the budget is halved, in all processes that share the weights, and the rows run again.
    From then on, each micro-batch is computed again for its gradients, so that the activations of only one are kept. Out of memory in a
    backward, part of the gradients exists already: the step ends with an error, in every process.

    Args:
        model: The model; its ``forward`` is replaced by this object, which passes every other call to the original.
        max_tokens: The token budget of a micro-batch; by default chosen for the model's device. Halved for good when memory is lacking.
        share_prefixes: Whether rows may share the computation of common beginnings.
        decoder: Whether the outputs are read from the last hidden states of the model's backbone.
    """

    outcome = "A row's reward"
    """What may depend on the other rows, in the warning about it."""

    def __init__(self, model: PreTrainedModel, max_tokens: int | None, *, share_prefixes: bool, decoder: bool) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self.share_prefixes = share_prefixes
        self._decoder = decoder
        self._causal = decoder and is_causal(model)
        self.packs = self._causal and attends_packed(model)
        self.whole = False
        self.recomputes = False
        self._halved = False
        self._shortage = Shortage(model, None)
        self._shards: Shards | None = None
        self._idle_row: Sequence[int] | None = None
        self._window = attention_window(model)
        self._classes = LengthClasses(model.config)
        self._frequencies = changing_frequencies(model.config)
        self._calls = {True: 0, False: 0}
        self._compared: set[tuple[bool, int, int]] = set()
        self._attention: str = model.config.get_text_config()._attn_implementation
        self._forward = model.forward
        self.__signature__ = inspect.signature(model.forward)  # `generate` and trainers read the names of a model's arguments
        model.forward = self

    @contextmanager
    def attention(self) -> Iterator[None]:
        """The context in which a batch must run and its gradients must be computed.

        Calls without rows, such as those of ``generate``, use the model's own attention in it too.

        Raises:
            torch.OutOfMemoryError: Memory is lacking for the gradients, here or in another process.
        """
        with attention_as(self.model, PACKED) if self.packs else nullcontext(), told_to_others(_ADVICE):
            yield

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
            completion_starts: The number of prompt tokens of each row, [N].
            kwargs: The model's own arguments.

        Raises:
            ValueError: There is no row, in any process if the weights are sharded.
            torch.OutOfMemoryError: Memory is lacking even with the smallest micro-batches.
        """
        if rows is None:
            with self._own_attention():
                return self._forward(*args, **kwargs)
        self._shards = self._shards or shards_of(self.model)  # a trainer may shard the model after this object was made
        self._shortage = Shortage(self.model, self._shards)
        while True:
            try:
                with self._shortage.spanning():
                    self._decide(rows)
                    outputs = self._outputs(rows, completion_starts)
                return outputs
            except torch.OutOfMemoryError as error:
                self._halve_budget(rows, error)

    def _halve_budget(self, rows: Sequence[Sequence[int]], error: torch.OutOfMemoryError) -> None:
        """Let the rows run again with less memory, in all processes that share the weights, if that is possible."""
        budget, longest = self._shortage.smallest(self._budget()), self._extremes(rows)[1]
        keeps = torch.is_grad_enabled() and not self.recomputes
        if self.whole or (not keeps and budget <= max(SMALLEST_BATCH_TOKENS, longest)):
            raise TogetherOutOfMemoryError(
                f"{self.model.device} has too little free memory for rows of up to {longest} tokens, {budget} tokens at a time: "
                f"{error}. {_ADVICE}"
            ) from error
        self._halved, self.max_tokens = True, max(SMALLEST_BATCH_TOKENS, budget // 2)
        self.recomputes = self.recomputes or keeps
        if self._shards is None or not distributed.get_rank():
            logger.warning(
                "%s ran out of memory (%s); it continues with %d tokens at a time.", self.model.device, error, self.max_tokens
            )

    def _own_attention(self) -> AbstractContextManager[None]:
        """The context of the calls without rows: packed attention would fail there."""
        is_packed = self.model.config.get_text_config()._attn_implementation == PACKED
        return attention_as(self.model, self._attention) if is_packed else nullcontext()

    @abstractmethod
    def _outputs(self, rows: Sequence[Sequence[int]], starts: Sequence[int | None] | None) -> Any:
        """The outputs for rows that may run as decided."""

    @abstractmethod
    def _compared_values(self, rows: Sequence[Sequence[int]], *, packs: bool = False, whole: bool = False) -> torch.Tensor:
        """What must not depend on how rows run, in row order."""

    def _decide(self, rows: Sequence[Sequence[int]]) -> None:
        """Find out how these rows can run."""
        shortest, longest = self._extremes(rows)
        if self.packs and longest > self._window:
            self.stop_packing(f"a row is longer than its sliding window of {self._window} tokens")
        if self._frequencies is not None and not self.whole and longest > self._frequencies.beyond:
            self.stop_splitting("the frequencies of its rotary positions depend on the longest row")
        key = (self.model.training, self._classes.of(shortest), self._classes.of(longest))
        if self._is_due(key):
            self._check(self._shared(rows))
            self._compared.add(key)
        elif self._shards is not None and self._idle_row is None:
            self._shared(rows)

    def _extremes(self, rows: Sequence[Sequence[int]]) -> tuple[int, int]:
        """The shortest and the longest length of a row in any process."""
        lengths = [*map(len, rows)]
        if self._shards is None:
            return min(lengths), max(lengths)
        negative, longest = self._shards.largest(-min(lengths, default=_NO_ROW), max(lengths, default=0))
        if not longest:
            raise ValueError("No process has a row.")
        return -negative, longest

    def _shared(self, rows: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """The rows that decisions are made from: the same ones in all processes."""
        if self._shards is None:
            return rows
        own = [min(rows, key=len), max(rows, key=len), rows[0]] if rows else []
        shared = [row for of_process in self._shards.gathered(own) for row in of_process]
        self._idle_row = min(shared, key=len)
        return shared

    def _micro_batches(
        self, rows: Sequence[Sequence[int]], *, packs: bool, whole: bool
    ) -> tuple[Sequence[Sequence[int]], Iterable[tuple[list[int], Packing | None]]]:
        """The rows, and row numbers by micro-batch, with the packing if it `packs`; with sharded weights, as many in every process.

        Idle micro-batches have further rows, which come after the given ones.
        """
        batches = self._packs(rows) if packs else ((group, None) for group in self._groups(rows, whole=whole))
        if self._shards is None:
            return rows, batches
        planned: deque[tuple[list[int], Packing | None]] = deque(batches if rows else ())
        assert self._idle_row is not None
        idle = self._shards.largest(len(planned))[0] - len(planned)
        for number in range(len(rows), len(rows) + idle):
            planned.append(([number], self._packing([self._idle_row]) if packs else None))
        # A packing's masks are freed with it.
        return [*rows, *[self._idle_row] * idle], (planned.popleft() for _ in range(len(planned)))

    def _states(
        self, rows: Sequence[Sequence[int]], batches: Iterable[tuple[list[int], Packing | None]]
    ) -> Iterator[tuple[list[int], torch.Tensor, list[torch.Tensor]]]:
        """For each micro-batch: its row numbers, hidden states [tokens, size], and the positions of each row's tokens in them."""
        for group, packing in batches:
            hidden = self._in_memory(partial(self._hidden, rows, group, packing), packs=packing is not None)
            if hidden is not None:
                yield group, hidden, self._places(rows, group, packing, hidden)
        self._shortage.raise_together()

    def _in_memory(self, run: Callable[[], torch.Tensor], *, packs: bool) -> torch.Tensor | None:
        """What a micro-batch gives; None where memory is lacking, and all processes will have to run their rows again."""
        if self.recomputes and torch.is_grad_enabled() and not self.whole:
            again = run

            def run() -> torch.Tensor:
                outputs: torch.Tensor = checkpoint(again, use_reentrant=False)
                return outputs

        return self._shortage.micro_batch(run, partial(self._idle, packs=packs))

    def _idle(self, *, packs: bool) -> torch.Tensor:
        """Run the short row of an idle process, and drop what it gives."""
        assert self._idle_row is not None
        row = [self._idle_row]
        return self._hidden(row, [0], self._packing(row) if packs else None)

    def _hidden(self, rows: Sequence[Sequence[int]], group: Sequence[int], packing: Packing | None) -> torch.Tensor:
        """The hidden states of a packed or padded micro-batch, [tokens, size]; an encoder's logits instead, [rows, labels]."""
        if not self._decoder:
            logits: torch.Tensor = self._forward(**self._padded(rows, group)).logits
            return logits
        backbone = getattr(self.model, self.model.base_model_prefix)
        if packing is not None:
            with attention_as(self.model, PACKED):
                output = backbone(input_ids=packing.ids, position_ids=packing.positions, use_cache=False, packing=packing)
        else:
            inputs = self._padded(rows, group)
            if self._causal and not self.whole:
                # No token of a row sees the padding after it, and the mask that is made of this one is quadratic in the longest row.
                del inputs["attention_mask"]
            with attention_as(self.model, self._attention):
                output = backbone(**inputs, use_cache=False)
        hidden: torch.Tensor = output.last_hidden_state.flatten(0, 1)
        return hidden

    @staticmethod
    def _places(
        rows: Sequence[Sequence[int]], group: Sequence[int], packing: Packing | None, hidden: torch.Tensor
    ) -> list[torch.Tensor]:
        """The positions of each row's tokens in the hidden states."""
        if packing is not None:
            return [packing.tokens_of(place) for place in range(len(group))]
        width = len(hidden) // len(group)
        return [torch.arange(place * width, place * width + len(rows[row])) for place, row in enumerate(group)]

    def _packs(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Packing]]:
        return packs_of(rows, self._budget(), self._packing, share_prefixes=self.share_prefixes)

    def _packing(self, rows: Sequence[Sequence[int]]) -> Packing:
        return Packing(rows, share_prefixes=self.share_prefixes, device=self.model.device)

    def _groups(self, rows: Sequence[Sequence[int]], *, whole: bool) -> list[list[int]]:
        return (
            [[*range(len(rows))]]
            if whole
            else micro_batches([len(row) for row in rows], self._budget(), costs_of(self.model).launch)
        )

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

    def _is_due(self, key: tuple[bool, int, int]) -> bool:
        """Whether the rows of this call are checked: for new classes of lengths, and at calls 1, 10, 100, ...

        Later checks are needed because a dependence between rows may have weights that start at zero.

        Args:
            key: The model's mode, and the classes of the shortest and the longest row.
        """
        self._calls[key[0]] += 1
        calls = self._calls[key[0]]
        is_new = key not in self._compared
        return not self.whole and (is_new or calls == 10 ** (len(str(calls)) - 1)) and (self._decoder or self._pads())

    @torch.no_grad()
    def _check(self, rows: Sequence[Sequence[int]]) -> None:
        """Compare a few rows between the ways to run them; disable the ways that give other scores."""
        by_length = sorted(rows, key=len)
        # Several rows, so that a model that mixes rows is noticed.
        few = sorted([by_length[0], by_length[-1], *rows[:2], rows[0][1:] or rows[0]], key=len)
        ends = [few[0], few[-1]]
        if self._halved:  # two long rows may not fit into memory at once
            ends = [row[: max(1, self._budget() // 2)] for row in ends]
        with undisturbed(self.model) as has_drawn:
            together = self._compared_values(ends, whole=True)
            alone = torch.cat([self._compared_values([row], whole=True) for row in ends])
            if has_drawn():
                problem: str | None = "it draws random numbers besides dropout, as NEFTune does"
            else:
                problem = self._difference(together, alone)
            if (problem := self._of_any(problem)) is not None:
                self.stop_splitting(problem)
            elif self.packs and (problem := self._of_any(self._problem_of_packing(few))):
                self.stop_packing(problem)

    def _of_any(self, problem: str | None) -> str | None:
        """The problem of the first process that has one."""
        self._shortage.raise_together()
        if self._shards is None:
            return problem
        problems = self._shards.gathered(None if problem is None else f"in process {distributed.get_rank()}: {problem}")
        return next((problem for problem in problems if problem is not None), None)

    def _problem_of_packing(self, rows: Sequence[Sequence[int]]) -> str | None:
        try:
            return self._difference(self._compared_values(rows, packs=True), self._compared_values(rows))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # only a trial shows whether a model supports another attention
            return f"{type(error).__name__}: {error}"

    def _difference(self, values: torch.Tensor, expected: torch.Tensor) -> str | None:
        found, plain = (tensor.double().cpu().numpy() for tensor in (values, expected))
        return scores_differ(found, plain, exact=self._is_exact())

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
            f"TRL's trainer. {self.outcome} may depend on its batch."
        )

    def _stop_packing(self) -> None:
        self.packs = False
        self.model.config.get_text_config()._attn_implementation = self._attention

    def _warn(self, what: str) -> None:
        if self._shards is not None and distributed.get_rank():
            return  # process 0 warns for all
        warnings.warn(f"{type(self.model).__name__} {what}", stacklevel=2)

    def _is_exact(self) -> bool:
        exact = self.model.dtype in (torch.float32, torch.float64)
        return exact and not torch.is_autocast_enabled(self.model.device.type)
