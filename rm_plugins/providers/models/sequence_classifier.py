"""Rewards from trained sequence-classification models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from rm_plugins.errors import ManifestError, ModelError, RmPluginsError, ScoringError, SpecError, UnsupportedError, did_you_mean
from rm_plugins.models.heads import Heads
from rm_plugins.models.identity import WHERE_A_MODEL_IS, model_facts
from rm_plugins.models.manifest import Manifest, ScoreStatistics, token_digest
from rm_plugins.provider import Aggregate, ModelSource, Provider, Transform
from rm_plugins.providers.models.model_members import ModelMembers
from rm_plugins.rendering.render import Renderer, Rendering, Truncation, configured_renderer
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, Scores, TokenCounts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from rm_plugins.models.checkpoint import Checkpoint

__all__ = ["SequenceClassifier"]


class SequenceClassifier(Provider):
    """A trained sequence-classification model: a folder, a LoRA adapter folder, or a hub id.

    Samples become token ids as the model's manifest says; without one, as TRL's RewardTrainer would train it: the
    tokenizer's chat template for conversations (paragraphs ``Role: content`` if it has none), text closed with EOS.

    Args:
        model: The folder or id.
        head: For a model with several labels, which one is the reward (its index or name), or a weight for each of several; what
            its manifest says if unset.
        aggregate: For a model with several members, such as our trainer makes with ``members``, how their rewards become one;
            their mean if unset.
        member_transforms: One for each member, before they are aggregated.
        common_scale: Whether the members are known to share a scale, which some aggregates warn of otherwise.
        tokenizer: Where the tokenizer is, if not beside the model.
        revision: The revision of a hub id.
        dtype: ``auto`` is float32 on a CPU and the checkpoint's own elsewhere.
        device: ``auto`` is this process's accelerator, else the CPU.
        max_length: Most tokens of a row; the manifest's, else the model's own limit.
        truncation: ``left`` cuts the beginning of a longer row's prompt, ``error`` refuses the row.
        chat_template: ``plain``, or a file with a Jinja template.
        append_eos: Whether text ends with EOS.
        template_kwargs: Further arguments of the chat template.
        max_batch_tokens: Padded tokens of a micro-batch; by default 2,048 on a CPU, and on an accelerator 16,384 or what fits.
        attn_implementation: Handed to transformers.
        compile: Whether whole rows run through ``torch.compile``.
        cache: ``memory``, or an SQLite file, to keep scores in and find them again, as long as the model is the same.
        trust_remote_code: Whether code in the checkpoint may run.
        verify: Whether loading compares the manifest with the weights (file sizes and one golden score).

    Raises:
        ModelError: No tokenizer, no trained head, or several labels and no `head`.
        ManifestError: The manifest does not match the model.
        SpecError: The model has no such label, or no several members to aggregate.
    """

    name: ClassVar[str] = "sequence-classifier"
    keys_without_effect: ClassVar[frozenset[str]] = frozenset(("cache", "compile", "device", "max_batch_tokens", "verify"))
    metrics: ClassVar[tuple[str, ...]] = ("tokens_per_second", "duplicate_share", "cached")

    def __init__(
        self,
        *,
        model: ModelSource,
        head: int | str | Mapping[int | str, float] | None = None,
        aggregate: Aggregate | None = None,
        member_transforms: Sequence[Transform] | None = None,
        common_scale: bool = False,
        tokenizer: ModelSource | None = None,
        revision: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        device: str = "auto",
        max_length: int | None = None,
        truncation: Truncation | None = None,
        chat_template: ModelSource | None = None,
        append_eos: bool | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        max_batch_tokens: int | None = None,
        attn_implementation: str | None = None,
        compile: bool = False,
        cache: str | None = None,
        trust_remote_code: bool = False,
        verify: bool = True,
    ) -> None:
        self.source = model
        self.label = Path(model).name or self.name
        self._head = head
        self._rendering_settings: dict[str, Any] = {
            "chat_template": chat_template,
            "append_eos": append_eos,
            "max_length": max_length,
            "truncation": truncation,
            "template_kwargs": template_kwargs,
        }
        self._loading: dict[str, Any] = {
            "tokenizer": tokenizer,
            "revision": revision,
            "dtype": dtype,
            "attn_implementation": attn_implementation,
            "trust_remote_code": trust_remote_code,
        }
        self._device = device
        self._running: dict[str, Any] = {"max_tokens": max_batch_tokens, "compile": compile}
        self._cache = cache
        self._load()
        if verify:
            self._verify_cheaply()
        self._members = self._combination(aggregate, member_transforms, common_scale)

    def _load(self) -> None:
        from rm_plugins.models.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(self.source, device=self._chosen_device(), **self._loading)
        self.manifest: Manifest | None = checkpoint.manifest
        self.renderer = self._renderer_of(checkpoint)
        self._start(checkpoint.model)
        self._heads = self._chosen_heads(self.manifest)

    def _chosen_device(self) -> torch.device:
        import torch

        from rm_plugins.models.checkpoint import default_device

        return default_device() if self._device == "auto" else torch.device(self._device)

    def _renderer_of(self, checkpoint: Checkpoint) -> Renderer:
        if checkpoint.manifest is not None:
            rendering = checkpoint.manifest.rendering
        else:
            limit = getattr(checkpoint.model.config.get_text_config(), "max_position_embeddings", None)
            rendering = Rendering.default(checkpoint.tokenizer, limit)
        return configured_renderer(checkpoint.tokenizer, rendering, **self._rendering_settings)

    def _start(self, model: PreTrainedModel, variants: Sequence[Callable[[], None]] = ()) -> None:
        """Make the engine that runs the model, or each of its variants."""
        from rm_plugins.engine.engine import ScoringEngine
        from rm_plugins.engine.score_cache import ScoreCache, model_fingerprint

        cache = ScoreCache(self._cache, model_fingerprint(model)) if self._cache is not None else None
        self.model = model
        self.engine = ScoringEngine(model, **self._running, cache=cache, variants=variants)

    def _chosen_heads(self, manifest: Manifest | None) -> Heads:
        """What the outputs are and how the reward is made of them: as the spec says, else the manifest."""
        names = self.model.config.id2label
        labels = [str(names[index]) for index in range(self.model.config.num_labels)]
        if self._head is None and len(labels) == 1:
            return Heads()
        if self._head is None and manifest is not None and manifest.heads is not None:
            return manifest.heads
        if self._head is None:
            raise ModelError(
                f"{self.source} has {len(labels)} labels ({', '.join(labels)}). Say in the spec which is the reward, such as "
                f"`head: {labels[0]}`, or how they are combined: `head: {{{labels[0]}: 1.0, {labels[1]}: -0.5}}`."
            )
        wanted = self._head if isinstance(self._head, Mapping) else {self._head: 1.0}
        weights = [0.0] * len(labels)
        for label, weight in wanted.items():
            known = 0 <= label < len(labels) if isinstance(label, int) else label in labels
            if not known:
                raise SpecError(f"{self.source} has no label {label!r}. {did_you_mean(str(label), labels)}", key="head")
            weights[label if isinstance(label, int) else labels.index(label)] = weight
        return Heads(tuple(labels), tuple(weights))

    def _combination(
        self, aggregate: Aggregate | None, transforms: Sequence[Transform] | None, common_scale: bool
    ) -> ModelMembers | None:
        """How the members become one; None where there is one only."""
        if self._heads.members > 1:
            labels, statistics = zip(*self._described_members(), strict=True)
            return ModelMembers(
                labels,
                statistics,
                aggregate=aggregate,
                transforms=transforms,
                common_scale=common_scale,
                called=repr(self.label),
            )
        for key, value in {"aggregate": aggregate, "member_transforms": transforms}.items():
            if value is not None:
                raise SpecError(
                    f"{self.source} is used as one member, so that there is nothing to combine. Leave the key out (and the key `head`, "
                    "if the model has several members), train the model with `RewardConfig(members=5)`, or combine several models "
                    "with `provider: ensemble`.",
                    key=key,
                )
        return None

    def _described_members(self) -> list[tuple[str, ScoreStatistics | None]]:
        """What messages call each member, and the statistics of its rewards where they are known."""
        return [(f"member {number} of {self.label}", None) for number in range(self._heads.members)]

    @property
    def statistics(self) -> ScoreStatistics | None:
        """The statistics of the model's scores in its manifest, if these are the scores that they are of."""
        return self._statistics_in(self.manifest) if self._members is None or self._members.is_plain_mean else None

    def _statistics_in(self, manifest: Manifest | None) -> ScoreStatistics | None:
        """The statistics in a manifest, unless the spec makes another reward of the outputs."""
        other = manifest is not None and manifest.heads is not None and self._head is not None
        return None if manifest is None or other else manifest.statistics

    @property
    def member_transforms(self) -> Sequence[Transform]:
        """What each member's rewards are reshaped with; empty if nothing."""
        return [] if self._members is None else self._members.transforms

    @property
    def dtype(self) -> str:
        """The name of the dtype that the model runs in."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def identity(self) -> list[Any]:
        """Its settings, the weights and the rendering, and the digest of its manifest."""
        manifest = None if self.manifest is None else self.manifest.digest
        return [self._settings_with_effect(*WHERE_A_MODEL_IS), model_facts(self.renderer, self.model), manifest]

    def render(self, sample: Sample) -> str:
        """The text of a sample, before truncation."""
        return self.renderer.text(sample)

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score each different row once, in micro-batches under the token budget; what rows begin with is shared where it pays."""
        ids, is_truncated = self.renderer.tokenized(samples)
        outputs, work = self.engine.outputs(ids)
        errors = self._non_finite(outputs)
        truncated = int(is_truncated.sum())
        self.counts.update(truncated=truncated, cached=work.cached, duplicates=work.duplicates)
        metadata = {"truncated": truncated, **work.as_metadata()}
        tokens = TokenCounts(np.array([len(row) for row in ids], dtype=np.int64), is_truncated)
        outputs[list(errors)] = np.nan
        heads = self._heads
        if self._members is not None:
            each = outputs.reshape(len(outputs), heads.members, len(heads.names))
            combined = self._members.combined((each @ np.array(heads.weights)).T, samples, metadata)
            return replace(combined, errors=errors, tokens=tokens)
        columns = zip(heads.names, outputs.T, strict=True) if len(heads) > 1 else ()
        parts = {name: Scores(column, kind="head") for name, column in columns}
        return Scores(outputs @ np.array(heads.weights), metadata=metadata, errors=errors, parts=parts, tokens=tokens)

    def _non_finite(self, outputs: FloatArray) -> dict[int, RmPluginsError]:
        """The errors of the rows for which the model gave no number."""
        wrong = np.flatnonzero(~np.isfinite(outputs).all(axis=1)).tolist()
        if not wrong:
            return {}
        error = ScoringError(
            f"The model {self.source} gave a non-finite score for {len(wrong)} of {len(outputs)} samples (first: item "
            f"{wrong[0]}). {self._non_finite_weights()}",
            rows=wrong,
        )
        return dict.fromkeys(wrong, error)

    def _non_finite_weights(self) -> str:
        for name, parameter in self.model.named_parameters():
            if not bool(parameter.isfinite().all()):
                return f"Its weights themselves are broken: {name} holds NaN or infinity."
        return f"Its weights are finite, so the computation overflowed in {self.dtype}; try the spec's key dtype: float32."

    def verify(self) -> list[str]:
        """Compare the manifest with the model: every file, and every golden sample's token ids and score.

        Returns:
            What differs, one line each; empty if everything is as it was written.

        Raises:
            UnsupportedError: The model has no manifest.
        """
        problems: list[list[str]] = []
        for source, manifest in self._parts:
            if manifest is None:
                raise UnsupportedError(
                    f"{source} has no reward_manifest.json to verify. Models trained with rm_plugins_trl.RewardTrainer have "
                    "one; another model can be used without, but nothing can be said of whether it changed."
                )
            folder = Path(source)
            problems.append(manifest.file_problems(folder) if folder.is_dir() else [])
        golden = self._golden_problems([range(len(manifest.golden)) if manifest else () for _, manifest in self._parts])
        several = len(self._parts) > 1
        return [
            f"{source}: {problem}" if several else problem
            for (source, _), files, scores in zip(self._parts, problems, golden, strict=True)
            for problem in files + scores
        ]

    @property
    def _parts(self) -> Sequence[tuple[str, Manifest | None]]:
        """The source and the manifest of each of the engine's variants."""
        return [(self.source, self.manifest)]

    def _verify_cheaply(self) -> None:
        sizes: list[list[str]] = []
        shortest: list[list[int]] = []
        for source, manifest in self._parts:
            sizes.append(manifest.size_problems(Path(source)) if manifest is not None and Path(source).is_dir() else [])
            comparable = manifest is not None and not sizes[-1] and self.renderer.rendering == manifest.rendering
            lengths = [len(str(golden.sample)) for golden in manifest.golden] if manifest is not None and comparable else []
            shortest.append([lengths.index(min(lengths))] if lengths else [])
        for (source, _), files, scores in zip(self._parts, sizes, self._golden_problems(shortest), strict=True):
            if files or scores:
                raise ManifestError(
                    f"The manifest of {source} does not match the model: {'; '.join(files + scores)}. Run `rm-plugins verify "
                    f"{source}` for the whole list; load with verify=False to use the model all the same."
                )

    def _golden_problems(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        """How golden samples are scored otherwise than was written: for each part, given the numbers of its golden samples."""
        chosen = [
            (place, row, manifest.golden[row], manifest)
            for place, ((_, manifest), part) in enumerate(zip(self._parts, rows, strict=True))
            if manifest is not None
            for row in part
        ]
        problems: list[list[str]] = [[] for _ in rows]
        if not chosen:
            return problems
        ids, _ = self.renderer.token_ids([golden.as_sample() for _, _, golden, _ in chosen])
        outputs = self.engine.outputs(ids)[0].reshape(len(chosen), len(rows), -1)
        for (place, row, golden, manifest), row_ids, found in zip(chosen, ids, outputs, strict=True):
            heads = manifest.heads or self._chosen_heads(manifest)
            value = float(found[place] @ np.array(heads.reward_weights))
            if token_digest(row_ids) != golden.token_ids:
                problems[place].append(f"golden[{row}].token_ids: the tokenizer or the rendering makes other token ids of it")
            if not abs(value - golden.score) <= manifest.tolerance(golden.score, self.dtype):
                problems[place].append(f"golden[{row}].score: {golden.score:.6g} was written, {value:.6g} is computed")
        return problems

    def __getstate__(self) -> dict[str, Any]:
        dropped = ("model", "engine", "renderer", "manifest", "_heads")
        return {key: value for key, value in self.__dict__.items() if key not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()
