"""Runs a sequence classifier over token ids: the only scoring loop of this code base.

Duplicate rows are computed once, shared prefixes are computed once where that is faster (`rm_plugins.engine.plan`), and the rest runs
in micro-batches sorted by length, within a token budget. Rows with shared prefixes run packed (`rm_plugins.engine.segment_pack`) where
the device and the model's attention allow it, and otherwise padded (`rm_plugins.engine.prefix_cache`).
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rm_plugins.engine.budget import SMALLEST_BATCH_TOKENS, costs_of, default_max_tokens
from rm_plugins.engine.compared_rows import compared_rows, unchecked_ways
from rm_plugins.engine.last_layer import LastLayer
from rm_plugins.engine.lengths import LengthClasses
from rm_plugins.engine.model_state import ModelState
from rm_plugins.engine.one_model import one_thread_of
from rm_plugins.engine.packing import PACKED
from rm_plugins.engine.placement import input_device
from rm_plugins.engine.plan import MicroBatch, Plan, Stage, plan_batches
from rm_plugins.engine.prefix_cache import CachedPrefixes, PrefixCache, has_standard_cache, is_causal, is_decoder
from rm_plugins.engine.readout import LastToken, Readout
from rm_plugins.engine.rotary import changing_frequencies
from rm_plugins.engine.segment_pack import PackedPrefixes, SegmentPack, runs_packed
from rm_plugins.engine.tensors import on_device, padded, rows_of
from rm_plugins.engine.tolerance import scores_differ
from rm_plugins.engine.transformers_internals import attention_as
from rm_plugins.engine.work import Work
from rm_plugins.errors import ScoringError
from rm_plugins.scores import FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rm_plugins.engine.score_cache import ScoreCache

logger = logging.getLogger(__name__)

IndexArray: TypeAlias = NDArray[np.intp]


class ScoringEngine:
    """Scores rows of token ids with one model; one thread at a time runs the model.

    Args:
        model: A ``*ForSequenceClassification`` model in evaluation mode.
        max_tokens: The budget of padded tokens of a micro-batch; by default chosen for the model's device. Halved permanently when the
            device runs out of memory.
        share_prefixes: Whether a decoder may compute shared prefixes only once.
        compile: Whether whole rows run through ``torch.compile``.
        cache: Stores scores for later calls.
        variants: Functions that each turn the model into a variant with the same architecture, such as by activating an adapter.
            Every row is scored by all variants, and their outputs are placed side by side.
        width: The number of outputs of one variant's head; by default the model's number of labels.
        readout: The tokens of a row that a decoder's head scores; by default the last token. Several tokens of a row need a causal
            decoder.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        max_tokens: int | None = None,
        *,
        share_prefixes: bool = True,
        compile: bool = False,
        cache: ScoreCache | None = None,
        variants: Sequence[Callable[[], None]] = (),
        width: int | None = None,
        readout: Readout | None = None,
    ) -> None:
        self.model = model
        self._one_thread = one_thread_of(model)
        self.readout = readout or LastToken.of(model)
        self._width: int = width or model.config.num_labels
        self._variants = variants or (_as_it_is,)
        self.max_tokens = max_tokens or default_max_tokens(model)
        self._pad_token_id: int | None = model.config.get_text_config().pad_token_id
        self.is_decoder = is_decoder(model)
        self._causal = self.is_decoder and is_causal(model)
        self._backbone: nn.Module = getattr(model, model.base_model_prefix) if self.is_decoder else model
        self._whole: Callable[..., Any] = torch.compile(self._backbone, dynamic=True) if compile else self._backbone
        self.shares_prefixes = share_prefixes and self._causal and has_standard_cache(model)
        self.packs = self.shares_prefixes and runs_packed(model)
        self._classes = LengthClasses(model.config)
        self._frequencies = changing_frequencies(model.config)
        self._state = ModelState(model)
        self._checked: set[Hashable] = set()
        self._apart = False
        self._alone: set[int] = set()
        self._cache = cache
        self._costs = costs_of(model)
        self.reads_last_layer = not compile
        self._last_layer: LastLayer | None = None

    def outputs(self, ids: Sequence[Sequence[int]]) -> tuple[FloatArray, Work]:
        """The classification head's outputs, float64 [N, variants * width], in the order of the rows, and the work that was done.

        Args:
            ids: Token ids per row, [N] non-empty lists without padding. A row that is scored at several tokens has as many
                consecutive rows of outputs.

        Raises:
            ScoringError: The device has too little memory even for the smallest micro-batch.
        """
        # Activating a variant changes the whole model, and the engine updates its own state: one thread at a time.
        with self._one_thread, torch.inference_mode():
            return self._outputs(ids)

    def _outputs(self, ids: Sequence[Sequence[int]]) -> tuple[FloatArray, Work]:
        started = time.perf_counter()
        if self.reads_last_layer and self._last_layer is None:
            with self._state.restored():
                self._last_layer = LastLayer.of(self.model)
            self.reads_last_layer = self._last_layer is not None
        # In a causal model, tokens after the scored one do not affect the score.
        rows = [row[: position + 1] for row in ids for position in self.readout.positions(row)] if self._causal else ids
        width, variants = self._width, len(self._variants)
        outputs = np.full((len(rows), variants * width), np.nan)
        work = Work(rows=variants * len(rows), tokens=variants * sum(map(len, ids)))
        unknown: IndexArray = np.arange(len(rows))
        if self._cache is not None:
            unknown = self._cache.read(rows, outputs)
            work.cached = variants * (len(rows) - len(unknown))
        for number, activate in enumerate(self._variants):
            activate()
            for pending in self._parts(unknown, rows):
                while len(pending):
                    pending = self._compute(pending, rows, outputs[:, number * width : (number + 1) * width], work)
        if self._cache is not None and len(unknown):
            self._cache.write([rows[row] for row in unknown], outputs[unknown])
        work.seconds = time.perf_counter() - started
        return outputs, work

    def _parts(self, pending: IndexArray, rows: Sequence[Sequence[int]]) -> list[IndexArray]:
        """The pending rows, grouped by what can run together."""
        if not self._apart and self._frequencies is None:
            return [pending]
        lengths = [len(rows[row]) for row in pending]
        parts = np.array(
            [self._classes.of(length) if self._apart else self._is_long(length) for length in lengths], dtype=np.intp
        )
        return [pending[parts == part] for part in np.unique(parts)]

    def _is_long(self, length: int) -> bool:
        """Whether the model's rotary frequencies for a row of this length differ from those for short rows."""
        return self._frequencies is not None and length > self._frequencies.beyond

    def _compute(self, pending: IndexArray, rows: Sequence[Sequence[int]], outputs: FloatArray, work: Work) -> IndexArray:
        """Fill in the outputs of the pending rows; returns those that are still pending.

        Rows remain pending if the device ran out of memory; all of them do if sharing prefixes turned out not to work.
        """
        subset = [rows[row] for row in pending]
        is_long = any(self._is_long(len(row)) for row in subset)  # their prefixes would get the frequencies of short rows
        plan = self._plan(subset, share_prefixes=self.shares_prefixes and not is_long)
        logits: list[tuple[list[int], torch.Tensor]] = []
        unknown = unchecked_ways(plan, subset, self._classes, self._checked)
        problem = None
        try:
            logits.extend(self._run(plan.stages, subset, None, work))
            if unknown and (chosen := compared_rows(plan, subset, unknown, self.max_tokens)):
                problem = self._difference(chosen, subset, rows_of(logits, len(subset), self._width)[0])
                self._checked.update(unknown)
        except torch.OutOfMemoryError as error:
            self._halve_budget(error)
        except Exception as error:  # only a trial shows whether a model supports a cache, and how
            if not unknown:
                raise
            problem = f"{type(error).__name__}: {error}"
        if problem is not None:
            if plan.packs:
                self._stop_packing(problem)
            else:
                self._stop_sharing(problem)
            return pending
        computed, done = rows_of(logits, len(subset), self._width)
        finished = done[plan.computed_as]
        outputs[pending[finished]] = computed[plan.computed_as][finished]
        work.duplicates += int((finished & (np.asarray(plan.computed_as) != np.arange(len(subset)))).sum())
        return pending[~finished]

    def _plan(self, rows: Sequence[Sequence[int]], *, share_prefixes: bool) -> Plan:
        # Without a padding token, an encoder can only run one row at a time; a decoder is not affected by tokens after a row's end.
        max_tokens = self.max_tokens if self.is_decoder or self._pad_token_id is not None else 0
        return plan_batches(rows, max_tokens, self._costs, share_prefixes=share_prefixes, packs=self.packs)

    def _run(
        self,
        stages: Sequence[Stage],
        rows: Sequence[Sequence[int]],
        before: CachedPrefixes | PackedPrefixes | None,
        work: Work,
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Run stages and their continuations; yields the numbers of the completed rows with their outputs [n, width].

        The outputs stay on the device, so that it does not wait while the next micro-batch is prepared.
        """
        for stage in stages:
            caches: list[Any] = []
            for batch in stage.batches:
                work.unique_tokens += sum(map(len, batch.segments))
                work.padded_tokens += batch.padded_tokens
                ends = [segment.row for segment in batch.segments]
                if before is None and not stage.continuations:
                    yield ends, self._whole_batch(batch, rows, self._inputs(batch, rows))
                    continue
                at = None if stage.continuations else self._read_at(batch, rows)
                run: Callable[..., tuple[Any, torch.Tensor]] = self._run_packed if batch.is_packed else self._run_padded
                cache, hidden = run(before, batch, rows, at)
                if at is None:
                    caches.append(cache)
                else:
                    yield ends, self._scores(hidden, at)
            if stage.continuations:
                prefixes = (PackedPrefixes if stage.batches[0].is_packed else CachedPrefixes).of(caches)
                del caches, cache, hidden
                yield from self._run(stage.continuations, rows, prefixes, work)

    def _inputs(self, batch: MicroBatch, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """A model's inputs for padded segments, each [segments, longest]."""
        tokens = [rows[segment.row][segment.start : segment.stop] for segment in batch.segments]
        return padded(tokens, self._pad_token_id or 0, input_device(self.model))

    def _run_padded(
        self, before: CachedPrefixes | None, batch: MicroBatch, rows: Sequence[Sequence[int]], at: torch.Tensor | None
    ) -> tuple[PrefixCache, torch.Tensor]:
        """Run padded segments that continue prefixes or are continued; the hidden states are [segments, longest or 1, size].

        Args:
            before: The prefixes; None at the start of the rows.
            batch: The segments.
            rows: Token ids per row.
            at: See `_read_at`; None if the segments are continued.
        """
        inputs = self._inputs(batch, rows)
        cache = PrefixCache(before, batch.segments, inputs["attention_mask"], keep=at is None)
        with self._state.restored(), self._reading(at, cache.mask, inputs["input_ids"].shape[1]):
            arguments = cache.arguments(self._backbone)
            return cache, self._backbone(input_ids=inputs["input_ids"], **arguments).last_hidden_state

    def _run_packed(
        self, before: PackedPrefixes | None, batch: MicroBatch, rows: Sequence[Sequence[int]], at: torch.Tensor | None
    ) -> tuple[SegmentPack, torch.Tensor]:
        """The same as `_run_padded` for packed segments; the hidden states are [segments, 1, size] if a token of each is read."""
        pack = SegmentPack(before, batch.segments, rows, input_device(self.model), keep=at is None)
        places = None if at is None else pack.at(at)
        reading = self._reading(places, pack, pack.ids.shape[1])
        with self._state.restored(), reading, attention_as(self.model, PACKED):
            hidden = self._backbone(**pack.arguments()).last_hidden_state
        return pack, hidden if places is None or hidden.shape[1] == 1 else hidden[0, places, None]

    def _whole_batch(self, batch: MicroBatch, rows: Sequence[Sequence[int]], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The outputs of whole rows, [segments, width], checked to equal those of each row computed alone."""
        if len(batch.segments) == 1 and not self.reads_last_layer:
            return self._whole_rows(batch, rows, inputs)
        lengths = [len(segment) for segment in batch.segments]
        shortest, longest = (self._classes.of(bound(lengths)) for bound in (min, max))
        changes = self._frequencies is not None and self._frequencies.by_length and self._is_long(max(lengths))
        if len(lengths) > 1 and (changes or longest in self._alone or (self._apart and shortest != longest)):
            return self._one_by_one(batch, rows)
        try:
            logits = self._whole_rows(batch, rows, inputs)
        except ValueError:  # BART refuses a batch whose rows have different numbers of EOS tokens
            return self._one_by_one(batch, rows)
        key = ("batch", shortest, longest, min(lengths) == max(lengths), len(lengths) > 1, self.reads_last_layer)
        if key not in self._checked:
            self._checked.add(key)
            order = sorted(range(len(lengths)), key=lengths.__getitem__)
            places = sorted({order[0], order[len(order) // 2]})  # short rows are most affected by padding and by other rows
            alone = self._one_by_one(MicroBatch(tuple(batch.segments[place] for place in places)), rows)
            problem = self._scores_differ(logits[places].double().cpu().numpy(), alone.double().cpu().numpy())
            if problem is not None and self.reads_last_layer:
                self.reads_last_layer = False
                return self._whole_batch(batch, rows, inputs)
            if problem is not None:
                self._stop_batching(problem, shortest, longest)
                return self._one_by_one(batch, rows)
        return logits

    def _one_by_one(self, batch: MicroBatch, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """The same as `_whole_batch` in the simplest way: each row alone, with all its tokens in every layer."""
        outputs = []
        for segment in batch.segments:
            inputs = padded([rows[segment.row]], self._pad_token_id or 0, input_device(self.model))
            outputs.append(self._whole_rows(MicroBatch((segment,)), rows, inputs, reading=False))
        return torch.cat(outputs)

    def _whole_rows(
        self, batch: MicroBatch, rows: Sequence[Sequence[int]], inputs: dict[str, torch.Tensor], *, reading: bool = True
    ) -> torch.Tensor:
        mask = inputs["attention_mask"]
        at = self._read_at(batch, rows)
        with self._state.restored(), self._reading(at, mask, mask.shape[1]) if reading else nullcontext():
            if not self.is_decoder:
                logits: torch.Tensor = self._whole(**inputs).logits
                return logits
            # A causal model does not see the padding after a row; without a mask, its attention is faster.
            arguments = {name: values for name, values in inputs.items() if not (self._causal and name == "attention_mask")}
            hidden = self._whole(**arguments, use_cache=False).last_hidden_state
        return self._scores(hidden, at)

    def _read_at(self, batch: MicroBatch, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """The position of the scored token in each segment, int64 [segments]; an encoder's first token."""
        at = [
            self.readout.positions(rows[segment.row])[-1] - segment.start if self.is_decoder else 0
            for segment in batch.segments
        ]
        return on_device(at, input_device(self.model))

    def _reading(self, at: torch.Tensor | None, seen: torch.Tensor | SegmentPack, tokens: int) -> AbstractContextManager[None]:
        """The context in which the last layer runs only for the scored tokens, if the model allows this.

        Args:
            at: See `_read_at`; None if no token is scored. For a pack, the positions in its sequence.
            seen: int64 [segments, cached + running tokens], 0 for padding; or the pack that runs.
            tokens: The length of the running rows.
        """
        if not self.reads_last_layer or self._last_layer is None or tokens == 1:
            return nullcontext()
        if at is not None and self.is_decoder and isinstance(seen, torch.Tensor):
            seen = seen * (torch.arange(seen.shape[1], device=seen.device) <= (at + seen.shape[1] - tokens)[:, None])
        return self._last_layer.reading(at, seen)

    def _scores(self, hidden: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """The head's outputs at the scored token of each row, [segments, width].

        Args:
            hidden: Hidden states of all tokens, [segments, longest, size], or of the scored ones, [segments, 1, size].
            at: See `_read_at`.
        """
        places = torch.zeros_like(at) if hidden.shape[1] == 1 else at
        logits: torch.Tensor = self.model.score(hidden[torch.arange(len(at), device=hidden.device), places.to(hidden.device)])
        return logits

    def _difference(self, chosen: Sequence[int], rows: Sequence[Sequence[int]], outputs: FloatArray) -> str | None:
        """How the outputs of rows with shared prefixes differ from those of the chosen rows run whole; None if they agree."""
        subset = [rows[row] for row in chosen]
        stages = self._plan(subset, share_prefixes=False).stages
        whole, _ = rows_of(self._run(stages, subset, None, Work()), len(subset), self._width)
        return self._scores_differ(outputs[chosen], whole)

    def _scores_differ(self, scores: FloatArray, expected: FloatArray) -> str | None:
        return scores_differ(scores, expected, exact=self.model.dtype in (torch.float32, torch.float64))

    def _stop_batching(self, problem: str, shortest: int, longest: int) -> None:
        """Run rows of different length classes separately from now on; if rows of one class disagree, run that class one by one."""
        is_known = self._apart if shortest != longest else bool(self._alone)
        if shortest != longest:
            self._apart = True
        else:
            self._alone.add(longest)
        if not is_known:
            how = "separately from rows of other lengths" if shortest != longest else "one by one"
            warnings.warn(
                f"{type(self.model).__name__} ({self.model.name_or_path}) gives a row another score in a batch than alone ({problem}), "
                f"so such rows run {how} from now on. Scores stay correct; scoring is slower.",
                stacklevel=2,
            )

    def _stop_packing(self, problem: str) -> None:
        """Pad segments that share a prefix from now on, which gives the same scores."""
        self.packs = False
        logger.debug("%s pads rows that share prefixes: %s", type(self.model).__name__, problem)

    def _stop_sharing(self, problem: str) -> None:
        self.shares_prefixes = False
        warnings.warn(
            f"{type(self.model).__name__} ({self.model.name_or_path}) does not give the same scores from cached prompts ({problem}), "
            "so every row is computed whole from now on. Scores stay exact; scoring is slower if prompts are shared.",
            stacklevel=2,
        )

    def _halve_budget(self, error: Exception) -> None:
        if self.max_tokens <= SMALLEST_BATCH_TOKENS:
            raise ScoringError(
                f"The device {input_device(self.model)} has too little free memory to score one row or {self.max_tokens} tokens at a time: "
                f"{error}. Free memory on it, or set a smaller dtype or max_length in the spec."
            ) from error
        self.max_tokens //= 2
        logger.warning(
            "%s ran out of memory; scoring continues with %d tokens at a time.", input_device(self.model), self.max_tokens
        )


def _as_it_is() -> None:
    """The only variant of a model without variants."""
