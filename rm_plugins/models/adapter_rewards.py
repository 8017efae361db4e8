"""Loads several LoRA adapters of one base model as one trained reward with several members; the base model is loaded once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from rm_plugins.errors import SpecError
from rm_plugins.models.checkpoint import load_adapters
from rm_plugins.models.golden import golden_rows
from rm_plugins.models.golden_check import Origin
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import Manifest, common_format
from rm_plugins.models.settings import ModelSettings
from rm_plugins.models.trained_reward import TrainedReward
from rm_plugins.rendering.render import Renderer


def load_adapter_rewards(adapters: Sequence[str], settings: ModelSettings, source: str) -> TrainedReward:
    """Load adapters of one base model as members of one reward, and check them against their manifests if `settings.verify` is set.

    Args:
        adapters: Two or more folders or hub ids.
        settings: How they are loaded and run; the revision is ignored.
        source: The name of all of them together in messages.

    Raises:
        SpecError: An adapter differs from the first in its base model, rendering or labels.
        ModelError: The base model or an adapter cannot be loaded.
        ManifestError: An adapter's manifest does not match it.
    """
    checkpoints, variants = load_adapters(adapters, settings)
    origins: list[Origin] = []
    loaded: list[tuple[Any, Renderer, _Facts]] = []
    for adapter, checkpoint in zip(adapters, checkpoints, strict=True):
        renderer = settings.renderer(adapter, checkpoint.tokenizer, checkpoint.manifest, checkpoint.model.config)
        heads = settings.heads(checkpoint.model, checkpoint.manifest, source)
        facts = _Facts(asdict(renderer.rendering), heads, _golden_token_ids(renderer))
        loaded = loaded or [(checkpoint.model, renderer, facts)]
        if difference := facts.difference(loaded[0][2], f"{adapters[0]} (adapters[0])"):
            raise SpecError(f"{adapter} {difference}", key=f"adapters[{len(origins)}]")
        origins.append(Origin(adapter, checkpoint.manifest))
    model, renderer, facts = loaded[0]
    heads = Heads(facts.heads.labels, facts.heads.reward_weights, len(adapters))
    return TrainedReward(
        model,
        renderer,
        heads,
        source=source,
        settings=settings,
        origins=origins,
        manifest=_manifest_of_all(origins, heads),
        variants=variants,
        load_again=partial(load_adapter_rewards, adapters, source=source),
    ).checked()


def _manifest_of_all(origins: Sequence[Origin], heads: Heads) -> Manifest | None:
    """The combined manifest; None if an adapter has no manifest."""
    manifests = [origin.manifest for origin in origins if origin.manifest is not None]
    if len(manifests) < len(origins):
        return None
    files = {f"{number}/{name}": file for number, manifest in enumerate(manifests) for name, file in manifest.files.items()}
    trained_on = common_format(manifest.trained_on for manifest in manifests)
    settings: dict[str, Any] = {"heads": heads, "statistics": None, "training": {}, "files": files, "golden": []}
    return manifests[0].model_copy(update={**settings, "trained_on": trained_on})


@dataclass(frozen=True, slots=True)
class _Facts:
    """The facts that must be equal for all adapters: rendering, token ids and heads."""

    rendering: Mapping[str, Any]
    heads: Heads
    token_ids: Sequence[Sequence[int]]

    def difference(self, other: _Facts, called: str) -> str:
        """How the facts differ, and what to do; empty if they are equal."""
        for key, value in self.rendering.items():
            if value != other.rendering[key]:
                return f"has {key}={value!r}, but {called} has {other.rendering[key]!r}; set one for all with the key `{key}`."
        if self.heads != other.heads:
            sums = [" + ".join(f"{weight:g} * {name}" for name, weight in _weighted(facts.heads)) for facts in (self, other)]
            return f"computes its reward as {sums[0]}, but {called} as {sums[1]}; set one for all with the key `head`."
        if self.token_ids != other.token_ids:
            return (
                f"has a tokenizer that gives other token ids than that of {called}; if one of them is right for all, name it with the "
                "key `tokenizer`."
            )
        return ""


def _weighted(heads: Heads) -> Iterable[tuple[str, float]]:
    return zip(heads.labels, heads.reward_weights, strict=True)


def _golden_token_ids(renderer: Renderer) -> list[Sequence[int]]:
    return list(golden_rows(Renderer(renderer.tokenizer, replace(renderer.rendering, max_length=None)))[1])
