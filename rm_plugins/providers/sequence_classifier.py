"""Rewards from trained sequence-classification models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from rm_plugins.errors import ManifestError, ModelError, ScoringError, SpecError, UnsupportedError, did_you_mean
from rm_plugins.scoring.manifest import Manifest, ScoreStatistics, token_digest
from rm_plugins.scoring.render import PLAIN, Renderer, Rendering, Truncation, read_chat_template
from rm_plugins.types import FloatArray, ModelSource, Provider, Sample, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["SequenceClassifier"]


class SequenceClassifier(Provider):
    """A trained sequence-classification model: a folder, a LoRA adapter folder, or a hub id.

    Samples become token ids as the model's manifest says; without one, as TRL's RewardTrainer would train it: the
    tokenizer's chat template for conversations (paragraphs ``Role: content`` if it has none), text closed with EOS.

    Args:
        model: The folder or id.
        head: For a model with several labels, which one is the reward (its index or name), or a weight for each of several; what
            its manifest says if unset.
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
    """

    name: ClassVar[str] = "sequence-classifier"
    metrics: ClassVar[tuple[str, ...]] = ("tokens_per_second", "duplicate_share", "cached")

    def __init__(
        self,
        *,
        model: ModelSource,
        head: int | str | Mapping[int | str, float] | None = None,
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
        self._chat_template = chat_template
        self._rendering_settings: dict[str, Any] = {
            "chat_template": None if chat_template is None else (PLAIN if chat_template == PLAIN else "tokenizer"),
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
        if verify and self.manifest is not None:
            self._verify_cheaply(self.manifest)

    def _load(self) -> None:
        import torch

        from rm_plugins.scoring.checkpoint import default_device, load_checkpoint
        from rm_plugins.scoring.engine import ScoringEngine
        from rm_plugins.scoring.score_cache import ScoreCache, model_fingerprint

        device = default_device() if self._device == "auto" else torch.device(self._device)
        checkpoint = load_checkpoint(self.source, device=device, **self._loading)
        tokenizer = checkpoint.tokenizer
        if self._chat_template not in (None, PLAIN):
            tokenizer.chat_template = read_chat_template(str(self._chat_template))
        self.model: PreTrainedModel = checkpoint.model
        cache = ScoreCache(self._cache, model_fingerprint(checkpoint.model)) if self._cache is not None else None
        self.engine = ScoringEngine(checkpoint.model, **self._running, cache=cache)
        self.manifest: Manifest | None = checkpoint.manifest
        if self.manifest is not None:
            rendering = self.manifest.rendering
        else:
            limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
            rendering = Rendering.default(tokenizer, limit)
        settings = {key: value for key, value in self._rendering_settings.items() if value is not None}
        self.renderer = Renderer(tokenizer, replace(rendering, **settings))
        names = self.model.config.id2label
        self._labels = [str(names[index]) for index in range(self.model.config.num_labels)]
        self._weights = self._head_weights()

    def _head_weights(self) -> FloatArray:
        """Weight of each label in the reward, float64 [num_labels]."""
        labels = dict(enumerate(self._labels))
        if self._head is None and len(labels) == 1:
            return np.ones(1)
        if self._head is None and self.manifest is not None and self.manifest.heads is not None:
            return np.array(self.manifest.heads.reward_weights)
        names = ", ".join(labels.values())
        if self._head is None:
            raise ModelError(
                f"{self.source} has {len(labels)} labels ({names}). Say in the spec which is the reward, such as "
                f"`head: {labels[0]}`, or how they are combined: `head: {{{labels[0]}: 1.0, {labels[1]}: -0.5}}`."
            )
        wanted = self._head if isinstance(self._head, Mapping) else {self._head: 1.0}
        weights = np.zeros(len(labels))
        by_name = {name: index for index, name in labels.items()}
        for label, weight in wanted.items():
            index = label if isinstance(label, int) else by_name.get(label, -1)
            if index not in labels:
                raise SpecError(f"head: {self.source} has no label {label!r}. {did_you_mean(str(label), labels.values())}")
            weights[index] = weight
        return weights

    @property
    def statistics(self) -> ScoreStatistics | None:
        """The statistics of the model's scores in its manifest."""
        return self.manifest.statistics if self.manifest else None

    @property
    def dtype(self) -> str:
        """The name of the dtype that the model runs in."""
        return str(self.model.dtype).removeprefix("torch.")

    def render(self, sample: Sample) -> str:
        """The text of a sample, before truncation."""
        return self.renderer.text(sample)

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score each different row once, in micro-batches under the token budget; what rows begin with is shared where it pays."""
        ids, truncated = self.renderer.token_ids(samples)
        outputs, work = self.engine.outputs(ids)
        wrong = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
        if len(wrong):
            raise ScoringError(
                f"The model {self.source} gave a non-finite score for {len(wrong)} of {len(samples)} samples (first: item "
                f"{wrong[0]}). {self._non_finite_weights()}",
                rows=wrong.tolist(),
            )
        self.counts.update(truncated=truncated, cached=work.cached, duplicates=work.duplicates)
        return Scores(outputs @ self._weights, self._details(outputs), {"truncated": truncated, **work.as_metadata()})

    def _details(self, outputs: FloatArray) -> dict[str, FloatArray]:
        """Each output of several, and of a shared-trunk ensemble the members' rewards and their standard deviation (ddof 0)."""
        heads = self.manifest.heads if self.manifest is not None else None
        if heads is not None and heads.members > 1:
            members = outputs.reshape(len(outputs), heads.members, -1) @ np.array(heads.weights)
            found = {f"member/{number}": members[:, number] for number in range(heads.members)}
            return {**found, "std": members.std(axis=1)}
        labels = self._labels
        return {f"head/{label}": outputs[:, index] for index, label in enumerate(labels)} if len(labels) > 1 else {}

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
        if self.manifest is None:
            raise UnsupportedError(
                f"{self.source} has no reward_manifest.json to verify. Models trained with rm_plugins_trl.RewardTrainer have "
                "one; another model can be used without, but nothing can be said of whether it changed."
            )
        folder = Path(self.source)
        problems = self.manifest.file_problems(folder) if folder.is_dir() else []
        return problems + self._golden_problems(self.manifest, range(len(self.manifest.golden)))

    def _verify_cheaply(self, manifest: Manifest) -> None:
        problems = manifest.size_problems(Path(self.source)) if Path(self.source).is_dir() else []
        if manifest.golden and not problems and self.renderer.rendering == manifest.rendering:
            shortest = min(range(len(manifest.golden)), key=lambda row: len(str(manifest.golden[row].sample)))
            problems = self._golden_problems(manifest, [shortest])
        if problems:
            raise ManifestError(
                f"The manifest of {self.source} does not match the model: {'; '.join(problems)}. Run `rm-plugins verify "
                f"{self.source}` for the whole list; load with verify=False to use the model all the same."
            )

    def _golden_problems(self, manifest: Manifest, rows: Sequence[int]) -> list[str]:
        samples = [manifest.golden[row].as_sample() for row in rows]
        ids, _ = self.renderer.token_ids(samples)
        values = self.score_batch(samples).values if samples else np.empty(0)
        problems = []
        for row, row_ids, value in zip(rows, ids, values, strict=True):
            golden = manifest.golden[row]
            if token_digest(row_ids) != golden.token_ids:
                problems.append(f"golden[{row}].token_ids: the tokenizer or the rendering makes other token ids of it")
            if abs(value - golden.score) > manifest.tolerance(golden.score, self.dtype):
                problems.append(f"golden[{row}].score: {golden.score:.6g} was written, {value:.6g} is computed")
        return problems

    def __getstate__(self) -> dict[str, Any]:
        dropped = ("model", "engine", "renderer", "manifest", "_labels", "_weights")
        return {key: value for key, value in self.__dict__.items() if key not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()
