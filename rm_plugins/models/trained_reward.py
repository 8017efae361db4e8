"""A trained model that scores: combines renderer, engine, and the meaning of its outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from rm_plugins.engine.together import check_same_rows, smallest_everywhere
from rm_plugins.errors import ManifestError, ModelError, RmPluginsError, ScoringError, UnsupportedError
from rm_plugins.models.embeddings import Embedded
from rm_plugins.models.golden_check import GoldenAgain, Origin, QuantizationCost, golden_again
from rm_plugins.models.heads import Heads
from rm_plugins.models.identity import model_facts
from rm_plugins.models.manifest import Manifest, ScoreStatistics, samples_in_other_format
from rm_plugins.models.settings import ModelSettings
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Read
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, TokenCounts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_CHECKS = ContextVar("_CHECKS", default=True)


_OTHER_FORMATS = {
    "conversations": (
        "text",
        "Prompt and completion are then joined as they are, without the chat template of the training, and the scores differ. Give the "
        'prompt as messages: [{"role": "user", "content": ...}].',
    ),
    "text": (
        "conversations",
        "Their messages are then rendered with roles, or a chat template, that the training did not have, and the scores differ. Give "
        "prompt and completion as text.",
    ),
}
"""By what a model was trained on, what other samples are, and what that means."""


@contextmanager
def loading_unchecked() -> Iterator[None]:
    """Within it, models are loaded without checking them against their manifests, regardless of their settings.

    `TrainedReward.verify` then reports the differences.
    """
    token = _CHECKS.set(False)
    try:
        yield
    finally:
        _CHECKS.reset(token)


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """A model's outputs for N samples.

    Args:
        values: float64 [N, outputs], NaN for rows with an error.
        errors: The errors by row.
        tokens: The numbers of tokens of the samples.
        metadata: ``truncated``, the number of truncated samples; ``other_format``, the number of samples in another format than the
            model was trained on, if any; ``quantization`` and ``quantization_cost`` of a quantized model; and the work of the engine.
    """

    values: FloatArray
    errors: Mapping[int, RmPluginsError]
    tokens: TokenCounts
    metadata: Mapping[str, Any]


def _the_same(
    load: Callable[[ModelSettings], TrainedReward], settings: ModelSettings, facts: Sequence[Any], cost: QuantizationCost | None
) -> TrainedReward:
    """Load a pickled reward again, with what is known of the cost of its quantization.

    Raises:
        ModelError: It has changed since it was pickled.
    """
    loaded = load(settings)
    if (now := loaded._facts) != facts:
        changed = "weights" if now[0] != facts[0] else "tokenizer or rendering"
        raise ModelError(
            f"{loaded.source} cannot be loaded again in this process: its {changed} changed after it was loaded in the first process, so "
            "the two would give different scores under one name. Load it again in both."
        )
    loaded.quantization_cost = cost
    return loaded


class TrainedReward:
    """A trained model with its renderer, its scoring engine, and the meaning of its outputs.

    Its pickle holds the source and a digest of the model; unpickling loads the model again.

    Args:
        model: A ``*ForSequenceClassification`` model in evaluation mode.
        renderer: The model's renderer.
        heads: The meaning of its outputs, variant by variant, and how the reward is computed from them.
        source: The name of the model in messages.
        settings: How it runs.
        origins: The source of each variant, for verification; empty if the model was not loaded.
        manifest: The manifest of the model as a whole.
        variants: See `rm_plugins.engine.engine.ScoringEngine`.
        width: See `rm_plugins.engine.engine.ScoringEngine`.
        load_again: Loads the same reward in another process, with the given settings.
        load_unchanged: Loads the model that the manifest describes, if this one was changed after loading.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        renderer: Renderer,
        heads: Heads,
        *,
        source: str,
        settings: ModelSettings,
        origins: Sequence[Origin] = (),
        manifest: Manifest | None = None,
        variants: Sequence[Callable[[], None]] = (),
        width: int | None = None,
        load_again: Callable[[ModelSettings], TrainedReward] | None = None,
        load_unchanged: Callable[[], TrainedReward] | None = None,
    ) -> None:
        from rm_plugins.engine.budget import default_max_tokens
        from rm_plugins.engine.engine import ScoringEngine
        from rm_plugins.engine.readout import LastToken
        from rm_plugins.engine.score_cache import ScoreCache, model_fingerprint
        from rm_plugins.models.quantization import Quantization

        self.model = model
        self.renderer = renderer
        self.heads = heads
        self.source = source
        self.settings = settings
        self.origins = list(origins) or [Origin(source)]
        self.manifest = manifest
        cache = None
        if settings.cache is not None:
            read_last = " last" if renderer.rendering.read == "last" else ""
            cache = ScoreCache(settings.cache, model_fingerprint(model) + read_last)
        max_tokens = settings.max_batch_tokens
        if settings.tp_plan is not None:
            max_tokens = smallest_everywhere(max_tokens or default_max_tokens(model))
        self.engine = ScoringEngine(
            model,
            max_tokens,
            compile=settings.compile,
            cache=cache,
            variants=variants,
            width=width,
            readout=LastToken.of(model, renderer.rendering.read),
        )
        self._embedded = Embedded(model, source)
        self._load_again = load_again
        self._load_unchanged = load_unchanged
        self._told_of_format = False
        self.quantization = None if settings.quantization is None else Quantization.of(settings.quantization)
        self.quantization_cost: QuantizationCost | None = None

    @classmethod
    def load(cls, source: str, settings: ModelSettings, model_class: type[PreTrainedModel] | None = None) -> TrainedReward:
        """Load a model folder, a LoRA adapter folder, or a hub id, and check it against its manifest if `settings.verify` is set.

        The arguments are those of `rm_plugins.models.checkpoint.load_checkpoint`.

        Raises:
            ModelError: It cannot be loaded, or it is not known which of its outputs is the reward.
            ManifestError: The manifest does not match it.
            SpecError: The settings name an output that it does not have.
        """
        from rm_plugins.models.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(source, settings, model_class)
        model, manifest = checkpoint.model, checkpoint.manifest
        return cls(
            model,
            settings.renderer(source, checkpoint.tokenizer, manifest, model.config),
            settings.heads(model, manifest, source),
            source=source,
            settings=settings,
            origins=[Origin(source, manifest)],
            manifest=manifest,
            load_again=partial(cls.load, source, model_class=model_class),
        ).checked()

    def __reduce__(self) -> tuple[Callable[..., TrainedReward], tuple[Any, ...]]:
        if self.settings.tp_plan is not None:
            raise UnsupportedError(
                f"{self.source!r} is split over several processes (tp_plan), so another process cannot load it alone."
            )
        if self._load_again is None:
            raise UnsupportedError(
                f"{self.source!r} is a model in the memory of this process. Save it, and load it in the other process."
            )
        # Fix the defaults that depend on this process: the dtype (accelerator) and the date (clock).
        date = self.renderer.rendering.template_date
        settings = replace(self.settings, verify=False, dtype=self.dtype, template_date=date)  # type: ignore[arg-type]
        return _the_same, (self._load_again, settings, self._facts, self.quantization_cost)

    @property
    def _facts(self) -> list[Any]:
        return model_facts(self.renderer, self.model)

    @property
    def dtype(self) -> str:
        """The name of the dtype that the model runs in."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def quantization_facts(self) -> dict[str, Any]:
        """How the model is quantized and what that costs, as JSON values; empty if it is not quantized."""
        if self.quantization is None:
            return {}
        cost = self.quantization_cost
        return {"quantization": str(self.quantization), "quantization_cost": None if cost is None else asdict(cost)}

    @property
    def quantization_in_words(self) -> str:
        """How the model is quantized and what that costs."""
        cost = self.quantization_cost
        unknown = (
            "what this costs is unknown, because no golden scores were compared (they are in the model's reward_manifest.json, and "
            "compared with verify: true and the manifest's rendering)"
        )
        return f"is quantized with {self.quantization}: {unknown if cost is None else cost}"

    @property
    def read(self) -> Read | None:
        """The token of a row at which the model is scored (`rm_plugins.rendering.rendering.Rendering`); None for an encoder."""
        return self.renderer.rendering.read if self.engine.is_decoder else None

    @property
    def statistics(self) -> ScoreStatistics | None:
        """The statistics of the rewards (the mean over members), if the manifest has them."""
        return self.settings.statistics_in(self.manifest)

    def outputs(self, samples: Sequence[Sample]) -> ModelOutputs:
        """Render samples and run the model, once for each distinct row and within the token budget.

        Raises:
            ScoringError: Samples are too long and must not be truncated, or the device has too little memory.
            DataError: Samples cannot be rendered.
        """
        other_format = self._in_other_format(samples)
        ids, is_truncated = self.renderer.tokenized(samples)
        self._embedded.check(ids)
        if self.settings.tp_plan is not None:
            check_same_rows(ids, self.source)
        values, work = self.engine.outputs(ids)
        errors = self._non_finite(values)
        values[list(errors)] = np.nan
        tokens = TokenCounts(np.array([len(row) for row in ids], dtype=np.int64), is_truncated)
        facts = {"truncated": int(is_truncated.sum()), **({"other_format": other_format} if other_format else {})}
        return ModelOutputs(values, errors, tokens, {**facts, **self.quantization_facts, **work.as_metadata()})

    def _in_other_format(self, samples: Sequence[Sample]) -> int:
        """How many samples have another format than those that the model was trained on; the first time, it is logged what that means.

        A cross-encoder is given the same texts in both formats.
        """
        if self.manifest is None or self.renderer.rendering.pair:
            return 0
        count = samples_in_other_format(samples, self.manifest.trained_on)
        if count and not self._told_of_format:
            self._told_of_format = True
            logger.warning(
                "The model %s was trained on %s, and %d of %d samples are %s. %s This warning is logged only once.",
                *(self.source, self.manifest.trained_on, count, len(samples)),
                *_OTHER_FORMATS[self.manifest.trained_on or "text"],
            )
        return count

    def _non_finite(self, outputs: FloatArray) -> dict[int, RmPluginsError]:
        """The errors of the rows for which the model gave a non-finite score."""
        wrong = np.flatnonzero(~np.isfinite(outputs).all(axis=1)).tolist()
        if not wrong:
            return {}
        return ScoringError(
            f"The model {self.source} gave a non-finite score for {len(wrong)} of {len(outputs)} samples (first: item "
            f"{wrong[0]}). {self._non_finite_weights()}",
            rows=wrong,
        ).by_row

    def _non_finite_weights(self) -> str:
        from rm_plugins.engine.placement import stored_weights

        for name, parameter in stored_weights(self.model):
            if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
                return f"Its weights are broken: {name} contains NaN or infinity. Train it again, or load another checkpoint."
        return f"Its weights are finite, so the computation overflowed in {self.dtype}; try the spec's key dtype: float32."

    def verify(self) -> list[str]:
        """Compare the manifest with the model: every file, and every golden sample's token ids and score.

        Returns:
            The differences, one line each; empty if there are none.

        Raises:
            UnsupportedError: The model has no manifest.
        """
        if self._load_unchanged is not None:
            unchanged = self._load_unchanged()
            problems = unchanged.verify()
            self.quantization_cost = unchanged.quantization_cost
            return problems
        if bare := next((origin.source for origin in self.origins if origin.manifest is None), None):
            raise UnsupportedError(
                f"{bare} has no reward_manifest.json to verify. Models trained with rm_plugins_trl.RewardTrainer have one. Other models "
                "work without it, but changes of them cannot be detected."
            )
        files = [origin.problems_of(Manifest.file_problems) for origin in self.origins]
        scored = self._golden_again([range(len(origin.manifest.golden)) for origin in self.origins if origin.manifest])
        self.quantization_cost = QuantizationCost.of(scored)
        return [
            f"{origin.source}: {problem}" if len(self.origins) > 1 else problem
            for origin, wrong, golden in zip(self.origins, files, scored, strict=True)
            for problem in chain(wrong, *(one.problems for one in golden))
        ]

    def checked(self) -> TrainedReward:
        """Check file sizes and one or two golden scores against the manifest, if `settings.verify` is set; returns this model.

        If there is a chat template, one of the golden samples uses it. A quantized model is compared with all golden scores, and a
        warning says what its quantization costs.

        Raises:
            ManifestError: The manifest does not match the model.
        """
        if not (self.settings.verify and _CHECKS.get()):
            return self
        files = [origin.problems_of(Manifest.size_problems) for origin in self.origins]
        is_template = self.renderer.rendering.chat_template == "tokenizer"
        chosen: list[Sequence[int]] = []
        for origin, wrong in zip(self.origins, files, strict=True):
            same = not wrong and origin.manifest is not None and self.renderer.rendering == origin.manifest.rendering
            golden = origin.manifest.golden if same and origin.manifest else []
            by_length = sorted(range(len(golden)), key=lambda number: len(str(golden[number].sample)))
            templated = [number for number in by_length if not isinstance(golden[number].sample.get("prompt"), str)]
            shortest = sorted({*by_length[:1], *(templated[:1] if is_template else ())})
            chosen.append(range(len(golden)) if self.quantization else shortest)
        scored = self._golden_again(chosen)
        coarse = (
            f"{self.quantization} may be too coarse for it: load it without `quantization` to know. "
            if self.quantization
            else ""
        )
        for origin, wrong, again in zip(self.origins, files, scored, strict=True):
            if problems := [*wrong, *chain(*(one.problems for one in again))]:
                raise ManifestError(
                    f"The manifest of {origin.source} does not match the model: {'; '.join(problems)}. {coarse}Run `rm-plugins verify "
                    f"{origin.source}` for the whole list; load with verify=False to use the model anyway."
                )
        if self.quantization is not None:
            self.quantization_cost = QuantizationCost.of(scored)
            logger.warning("The model %s %s.", self.source, self.quantization_in_words)
        return self

    def _golden_again(self, rows: Sequence[Sequence[int]]) -> list[list[GoldenAgain]]:
        return golden_again(
            self.origins,
            rows,
            renderer=self.renderer,
            outputs=lambda ids: self.engine.outputs(ids)[0],
            heads=lambda manifest: manifest.heads or self.settings.heads(self.model, manifest, self.source),
            dtype=self.dtype,
            quantization=None if self.quantization is None else self.quantization.name,
        )
