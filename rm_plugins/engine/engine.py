"""Runs a sequence classifier over token ids: the one scoring loop of this code base.

Equal rows run once, what rows have in common at their beginnings runs once where that pays (`rm_plugins.engine.plan`), and
everything else in length-sorted micro-batches under a token budget.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rm_plugins.engine.lengths import LengthClasses
from rm_plugins.engine.model_state import ModelState
from rm_plugins.engine.one_model import one_thread_of
from rm_plugins.engine.plan import Costs, MicroBatch, Plan, Segment, Stage, plan_batches
from rm_plugins.engine.prefix_cache import CachedPrefixes, PrefixCache, has_standard_cache, is_causal, is_decoder
from rm_plugins.engine.readout import LastToken, Readout
from rm_plugins.engine.rotary import changing_frequencies
from rm_plugins.engine.tensors import on_device, padded
from rm_plugins.errors import ScoringError
from rm_plugins.scores import FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rm_plugins.engine.score_cache import ScoreCache

logger = logging.getLogger(__name__)

CPU_BATCH_TOKENS = 2_048
ACCELERATOR_BATCH_TOKENS = 16_384
SMALLEST_BATCH_TOKENS = 64
"""The budget is not halved below this."""

# A forward pass takes a while to launch, in which an accelerator could compute many more tokens than a CPU.
_CPU_COSTS = Costs(launch=64, read=0.02)
_ACCELERATOR_COSTS = Costs(launch=1_024, read=0.02)

_TOLERANCE = 1e-4
_HALF_TOLERANCE = 5e-2

BoolArray: TypeAlias = NDArray[np.bool_]
IndexArray: TypeAlias = NDArray[np.intp]


@dataclass(slots=True)
class Work:
    """What scoring a batch took, of all variants of a model together.

    Args:
        rows: Rows that were asked for.
        duplicates: Rows with the same token ids as another one, which were not computed.
        cached: Rows whose scores came from the score cache.
        tokens: Tokens of all rows.
        unique_tokens: Tokens that the model ran over, without padding: duplicates and shared beginnings count once.
        padded_tokens: The same with padding.
        seconds: Wall time.
    """

    rows: int = 0
    duplicates: int = 0
    cached: int = 0
    tokens: int = 0
    unique_tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0

    def as_metadata(self) -> dict[str, float]:
        """The fields by name, with ``tokens_per_second`` and ``duplicate_share``, both 0 where nothing was scored."""
        return {
            **asdict(self),
            "tokens_per_second": self.tokens / self.seconds if self.seconds else 0.0,
            "duplicate_share": self.duplicates / self.rows if self.rows else 0.0,
        }


class ScoringEngine:
    """A model with its token budget, which one thread at a time runs.

    Args:
        model: A ``*ForSequenceClassification`` model in evaluation mode.
        max_tokens: The budget for the padded tokens of a micro-batch; by default what suits the model's device. Halved for
            good when the device runs out of memory.
        share_prefixes: Whether a decoder may compute what rows begin with only once.
        compile: Whether whole rows run through ``torch.compile``.
        cache: Where scores are kept for later calls.
        variants: Functions that each turn the model into another one of its architecture, such as by activating an adapter.
            Every row is scored by all of them, and their outputs stand side by side.
        width: How many outputs one variant's head gives; the model's labels if unset.
        readout: Where a decoder's head reads a row; at its last token if unset. A decoder may be read at several tokens of a row
            if it is causal.
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
        self._classes = LengthClasses(model.config)
        self._frequencies = changing_frequencies(model.config)
        self._state = ModelState(model)
        self._checked: set[Hashable] = set()
        self._apart = False
        self._alone: set[int] = set()
        self._cache = cache
        self._costs = costs_of(model)

    def outputs(self, ids: Sequence[Sequence[int]]) -> tuple[FloatArray, Work]:
        """The classification head's outputs, float64 [N, variants * width], in the rows' order, and what they took.

        Args:
            ids: Token ids per row, [N] lists without padding, none of them empty. One that is read at several tokens has as many
                rows of outputs, one after the other.

        Raises:
            ScoringError: The device has not enough memory even for the smallest micro-batch.
        """
        # A variant is the whole model's state, and so is much of what is learned of it and of its device.
        with self._one_thread, torch.inference_mode():
            return self._outputs(ids)

    def _outputs(self, ids: Sequence[Sequence[int]]) -> tuple[FloatArray, Work]:
        started = time.perf_counter()
        # What follows the token that the score is read at changes nothing in a causal model.
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
        """The pending rows, by what can run together."""
        if not self._apart and self._frequencies is None:
            return [pending]
        lengths = [len(rows[row]) for row in pending]
        parts = np.array(
            [self._classes.of(length) if self._apart else self._is_long(length) for length in lengths], dtype=np.intp
        )
        return [pending[parts == part] for part in np.unique(parts)]

    def _is_long(self, length: int) -> bool:
        """Whether a model's frequencies are others for a row than for short ones."""
        return self._frequencies is not None and length > self._frequencies.beyond

    def _compute(self, pending: IndexArray, rows: Sequence[Sequence[int]], outputs: FloatArray, work: Work) -> IndexArray:
        """Fill in the outputs of the pending rows; returns those that are still pending.

        Rows stay behind where the device ran out of memory, and all of them where sharing prefixes turned out not to work.
        """
        subset = [rows[row] for row in pending]
        is_long = any(self._is_long(len(row)) for row in subset)  # whose beginnings would have the frequencies of short ones
        plan = self._plan(subset, share_prefixes=self.shares_prefixes and not is_long)
        logits: list[tuple[list[int], torch.Tensor]] = []
        unknown = self._unchecked(plan, subset)
        problem = None
        try:
            logits.extend(self._run(plan.stages, subset, None, work))
            if unknown and (chosen := self._compared(plan, subset, unknown)):
                problem = self._difference(chosen, subset, _scattered(logits, len(subset), self._width)[0])
                self._checked.update(unknown)
        except torch.OutOfMemoryError as error:
            self._halve_budget(error)
        except Exception as error:  # whether a model takes a cache, and how, shows only when it is tried
            if not unknown:
                raise
            problem = f"{type(error).__name__}: {error}"
        if problem is not None:
            self._stop_sharing(problem)
            return pending
        computed, done = _scattered(logits, len(subset), self._width)
        finished = done[plan.computed_as]
        outputs[pending[finished]] = computed[plan.computed_as][finished]
        work.duplicates += int((finished & (np.asarray(plan.computed_as) != np.arange(len(subset)))).sum())
        return pending[~finished]

    def _plan(self, rows: Sequence[Sequence[int]], *, share_prefixes: bool) -> Plan:
        # Without padding, an encoder can only be given one row at a time; a decoder reads nothing behind a row's end.
        max_tokens = self.max_tokens if self.is_decoder or self._pad_token_id is not None else 0
        return plan_batches(rows, max_tokens, self._costs, share_prefixes=share_prefixes)

    def _run(
        self, stages: Sequence[Stage], rows: Sequence[Sequence[int]], before: CachedPrefixes | None, work: Work
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Run stages and all that continue them; gives the numbers of rows that end, with their outputs [n, width].

        The outputs stay on the device, which need not wait for the next micro-batch to be prepared.
        """
        for stage in stages:
            caches = []
            for batch in stage.batches:
                work.unique_tokens += sum(map(len, batch.segments))
                work.padded_tokens += batch.padded_tokens
                tokens = [rows[segment.row][segment.start : segment.stop] for segment in batch.segments]
                inputs = padded(tokens, self._pad_token_id or 0, self.model.device)
                ends = [segment.row for segment in batch.segments]
                if before is None and not stage.continuations:
                    yield ends, self._whole_batch(batch, rows, inputs)
                    continue
                cache = PrefixCache(before, batch.segments, inputs["attention_mask"], keep=bool(stage.continuations))
                with self._state.kept():
                    hidden = self._backbone(input_ids=inputs["input_ids"], **cache.arguments(self._backbone)).last_hidden_state
                if stage.continuations:
                    caches.append(cache)
                else:
                    yield ends, self._scores(batch, rows, hidden)
            if stage.continuations:
                prefixes = CachedPrefixes.of(caches)
                del caches, cache, hidden
                yield from self._run(stage.continuations, rows, prefixes, work)

    def _whole_batch(self, batch: MicroBatch, rows: Sequence[Sequence[int]], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The outputs of whole rows, [segments, width], which are those of each row by itself."""
        if len(batch.segments) == 1:
            return self._whole_rows(batch, rows, inputs)
        lengths = [len(segment) for segment in batch.segments]
        shortest, longest = (self._classes.of(bound(lengths)) for bound in (min, max))
        changes = self._frequencies is not None and self._frequencies.by_length and self._is_long(max(lengths))
        if changes or longest in self._alone or (self._apart and shortest != longest):
            return self._one_by_one(batch, rows)
        try:
            logits = self._whole_rows(batch, rows, inputs)
        except ValueError:  # BART refuses a batch whose rows have different numbers of EOS tokens
            return self._one_by_one(batch, rows)
        key = ("batch", shortest, longest, min(lengths) == max(lengths))
        if key not in self._checked:
            self._checked.add(key)
            order = sorted(range(len(lengths)), key=lengths.__getitem__)
            places = sorted({order[0], order[len(order) // 2]})  # padding and company show most in short rows
            alone = self._one_by_one(MicroBatch(tuple(batch.segments[place] for place in places)), rows)
            problem = self._scores_differ(logits[places].double().cpu().numpy(), alone.double().cpu().numpy())
            if problem is not None:
                self._stop_batching(problem, shortest, longest)
                return self._one_by_one(batch, rows)
        return logits

    def _one_by_one(self, batch: MicroBatch, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        outputs = []
        for segment in batch.segments:
            inputs = padded([rows[segment.row]], self._pad_token_id or 0, self.model.device)
            outputs.append(self._whole_rows(MicroBatch((segment,)), rows, inputs))
        return torch.cat(outputs)

    def _whole_rows(self, batch: MicroBatch, rows: Sequence[Sequence[int]], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with self._state.kept():
            if not self.is_decoder:
                logits: torch.Tensor = self._whole(**inputs).logits
                return logits
            # A causal model does not look at the padding behind a row; without a mask, its attention is faster.
            arguments = {name: values for name, values in inputs.items() if not (self._causal and name == "attention_mask")}
            hidden = self._whole(**arguments, use_cache=False).last_hidden_state
        return self._scores(batch, rows, hidden)

    def _scores(self, batch: MicroBatch, rows: Sequence[Sequence[int]], hidden: torch.Tensor) -> torch.Tensor:
        """The head's outputs where each row ends, [segments, width]; `hidden` is [segments, longest, size]."""
        at = [self.readout.positions(rows[segment.row])[-1] - segment.start for segment in batch.segments]
        logits: torch.Tensor = self.model.score(
            hidden[torch.arange(len(at), device=hidden.device), on_device(at, hidden.device)]
        )
        return logits

    def _unchecked(self, plan: Plan, rows: Sequence[Sequence[int]]) -> dict[Hashable, list[int]]:
        """The ways of sharing in a plan that have not been compared yet, each with the rows that are computed so.

        A way is whether beginnings are padded, and the classes of lengths that a beginning and its row belong to.
        """
        found: dict[Hashable, list[int]] = {}
        pads = plan.pads_prefixes
        for segment in self._continued(plan):
            way = ("sharing", pads, *(self._classes.of(size) for size in (segment.start, len(rows[segment.row]))))
            if way not in self._checked:
                found.setdefault(way, []).append(segment.row)
        return found

    @staticmethod
    def _continued(plan: Plan) -> list[Segment]:
        """The segments that end rows whose beginnings ran before."""
        return [segment for stage in plan.walk() if not stage.continuations for segment in stage.segments if segment.start]

    def _compared(self, plan: Plan, rows: Sequence[Sequence[int]], unknown: Mapping[Hashable, Sequence[int]]) -> list[int]:
        """Rows of a plan that shares prefixes, to be run whole as well: about a micro-batch, and at least one computed in each way."""
        fitting = [segment.row for segment in self._continued(plan)]
        fitting = [row for row in fitting if len(rows[row]) <= self.max_tokens]
        step = -(-sum(len(rows[row]) for row in fitting) // self.max_tokens)
        # The rows of the shortest beginning have the most padding before their continuation.
        stages = [stage for stage in plan.walk() if stage.continuations]
        uneven = max(stages, key=lambda stage: len({segment.stop for segment in stage.segments}))
        shortest = min(uneven.segments, key=lambda segment: segment.stop)
        each = {min(of_way, key=lambda row: len(rows[row])) for of_way in unknown.values()}
        return sorted({*fitting[:: max(1, step)]}.union({shortest.row, *each} & {*fitting}))

    def _difference(self, chosen: Sequence[int], rows: Sequence[Sequence[int]], outputs: FloatArray) -> str | None:
        """What is wrong with the outputs of rows that shared prefixes, seen by running the chosen ones whole."""
        subset = [rows[row] for row in chosen]
        stages = self._plan(subset, share_prefixes=False).stages
        whole, _ = _scattered(self._run(stages, subset, None, Work()), len(subset), self._width)
        return self._scores_differ(outputs[chosen], whole)

    def _scores_differ(self, scores: FloatArray, expected: FloatArray) -> str | None:
        return scores_differ(scores, expected, exact=self.model.dtype in (torch.float32, torch.float64))

    def _stop_batching(self, problem: str, shortest: int, longest: int) -> None:
        """Have rows of different classes of lengths run apart; where one class does not go together, its rows one by one."""
        is_known = self._apart if shortest != longest else bool(self._alone)
        if shortest != longest:
            self._apart = True
        else:
            self._alone.add(longest)
        if not is_known:
            how = "apart from rows of other lengths" if shortest != longest else "one by one"
            warnings.warn(
                f"{type(self.model).__name__} ({self.model.name_or_path}) gives a row another score in a batch than alone ({problem}), "
                f"so such rows run {how} from now on: right, but slower.",
                stacklevel=2,
            )

    def _stop_sharing(self, problem: str) -> None:
        self.shares_prefixes = False
        warnings.warn(
            f"{type(self.model).__name__} ({self.model.name_or_path}) does not give the same scores from cached prompts ({problem}), "
            "so every row is computed whole from now on: exact, but slower where prompts are shared.",
            stacklevel=2,
        )

    def _halve_budget(self, error: Exception) -> None:
        if self.max_tokens <= SMALLEST_BATCH_TOKENS:
            raise ScoringError(
                f"The device {self.model.device} has not enough memory left for one row or {self.max_tokens} tokens at a time: "
                f"{error}. Free memory there, or set a smaller dtype or max_length in the spec."
            ) from error
        self.max_tokens //= 2
        logger.warning("%s ran out of memory; scoring goes on with %d tokens at a time.", self.model.device, self.max_tokens)


def _as_it_is() -> None:
    """The one variant of a model that has no others."""


def _scattered(batches: Iterable[tuple[list[int], torch.Tensor]], size: int, width: int) -> tuple[FloatArray, BoolArray]:
    """Outputs by row, float64 [size, width], and which rows have any."""
    outputs, done = np.full((size, width), np.nan), np.zeros(size, dtype=np.bool_)
    for numbers, logits in batches:
        outputs[numbers], done[numbers] = logits.double().cpu().numpy(), True
    return outputs, done


def scores_differ(scores: FloatArray, expected: FloatArray, *, exact: bool) -> str | None:
    """How scores differ from those of a plainer computation; None where they agree as floating point allows.

    Args:
        scores: Of any shape.
        expected: The same scores, computed plainly.
        exact: Whether the model computes in float32 or more, for a tolerance of 1e-4 instead of 5e-2.
    """
    difference = np.abs(scores - expected)
    allowed = (_TOLERANCE if exact else _HALF_TOLERANCE) * (1 + np.abs(expected))
    wrong = ~(difference <= allowed) & np.isfinite(expected)  # a model that gives no number is somebody else's to report
    return f"its scores differ by up to {difference[wrong].max():.1e}" if wrong.any() else None


def costs_of(model: PreTrainedModel) -> Costs:
    """What computing costs on the model's device beside the tokens."""
    return _CPU_COSTS if model.device.type == "cpu" else _ACCELERATOR_COSTS


def default_max_tokens(model: PreTrainedModel) -> int:
    """The budget that suits the device: on an accelerator, activations take at most half of the memory that is free."""
    if model.device.type != "cuda":
        return CPU_BATCH_TOKENS if model.device.type == "cpu" else ACCELERATOR_BATCH_TOKENS
    free, _ = torch.cuda.mem_get_info(model.device)
    fitting = free // 2 // activation_bytes(model)
    return int(min(ACCELERATOR_BATCH_TOKENS, max(SMALLEST_BATCH_TOKENS, fitting)))


def activation_bytes(model: PreTrainedModel) -> int:
    """The memory of one token's activations in a layer, in bytes, as it is taken to be for a budget."""
    config = model.config.get_text_config()
    widths = 12 * config.hidden_size + 3 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    return int(widths * model.dtype.itemsize)
