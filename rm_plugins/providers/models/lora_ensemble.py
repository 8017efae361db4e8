"""Several LoRA adapters of one base model, which is loaded once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from rm_plugins.errors import SpecError
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import Manifest, ScoreStatistics
from rm_plugins.provider import Aggregate, ModelSource, Transform
from rm_plugins.providers.models.inherited_keys import hands_on
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from rm_plugins.rendering.render import Renderer

__all__ = ["LoraEnsemble"]


class LoraEnsemble(SequenceClassifier):
    """LoRA adapters of one base model as the members of an ensemble, in the memory of one model.

    A batch is rendered once and scored by one adapter after the other. The other keys are those of a `SequenceClassifier`.

    Args:
        adapters: Folders or hub ids, two or more, trained on the same base model with the same rendering and labels.
        aggregate: How the members' rewards become one; their mean if unset.
        member_transforms: One for each adapter, before they are aggregated; ``zscore`` finds the statistics of the adapter's own
            manifest.
        common_scale: Whether the members are known to share a scale, which some aggregates warn of otherwise.

    Raises:
        SpecError: There are fewer than two adapters, or one differs from the first in its base model, rendering or labels.
        ModelError: The base model or an adapter cannot be loaded.
        ManifestError: An adapter's manifest does not match it.
    """

    name: ClassVar[str] = "lora-ensemble"

    @hands_on(SequenceClassifier.__init__, without=["model", "revision"])
    def __init__(
        self,
        *,
        adapters: Sequence[ModelSource],
        aggregate: Aggregate | None = None,
        member_transforms: Sequence[Transform] | None = None,
        common_scale: bool = False,
        **settings: Any,
    ) -> None:
        if len(adapters) < 2:
            raise SpecError("there must be two or more; one by itself is a `sequence-classifier`.", key="adapters")
        self.adapters = list(adapters)
        super().__init__(
            model=self.name,  # what messages call it
            aggregate=aggregate,
            member_transforms=member_transforms,
            common_scale=common_scale,
            **settings,
        )

    def _load(self) -> None:
        from rm_plugins.models.checkpoint import load_adapters

        loading = {key: value for key, value in self._loading.items() if key != "revision"}
        checkpoints, variants = load_adapters(self.adapters, device=self._chosen_device(), **loading)
        self.manifests: list[Manifest | None] = []
        first: _Facts | None = None
        for source, checkpoint in zip(self.adapters, checkpoints, strict=True):
            renderer = self._renderer_of(checkpoint)
            if first is None:
                self.renderer = renderer
                self._start(checkpoint.model, variants)
            facts = _Facts(asdict(renderer.rendering), self._chosen_heads(checkpoint.manifest), _golden_token_ids(renderer))
            first = first or facts
            if difference := facts.difference(first, f"{self.adapters[0]} (adapters[0])"):
                raise SpecError(f"{source} {difference}", key=f"adapters[{len(self.manifests)}]")
            self.manifests.append(checkpoint.manifest)
        if first is not None:
            self._heads = Heads(first.heads.labels, first.heads.reward_weights, len(self.adapters))
        self.manifest = self._manifest_of_all()

    def _manifest_of_all(self) -> Manifest | None:
        """What the manifests say together; None where an adapter has none."""
        manifests = [manifest for manifest in self.manifests if manifest is not None]
        if len(manifests) < len(self.manifests):
            return None
        files = {f"{place}/{name}": file for place, found in enumerate(manifests) for name, file in found.files.items()}
        settings: dict[str, Any] = {"heads": self._heads, "statistics": None, "training": {}, "files": files, "golden": []}
        return manifests[0].model_copy(update=settings)

    @property
    def _parts(self) -> Sequence[tuple[str, Manifest | None]]:
        return list(zip(self.adapters, self.manifests, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in super().__getstate__().items() if key != "manifests"}

    def _described_members(self) -> list[tuple[str, ScoreStatistics | None]]:
        return [(source, self._statistics_in(manifest)) for source, manifest in self._parts]


@dataclass(frozen=True, slots=True)
class _Facts:
    """What adapters must have in common: how samples become token ids, which ones, and what is made of the outputs."""

    rendering: Mapping[str, Any]
    heads: Heads
    token_ids: Sequence[Sequence[int]]

    def difference(self, other: _Facts, called: str) -> str:
        """What is different, and what to do; empty if nothing is."""
        for key, value in self.rendering.items():
            if value != other.rendering[key]:
                return f"has {key}={value!r}, and {called} {other.rendering[key]!r}; give them one with the key `{key}`."
        if self.heads != other.heads:
            made = [" + ".join(f"{weight:g} * {name}" for name, weight in _weighted(facts.heads)) for facts in (self, other)]
            return f"makes its reward of {made[0]}, and {called} of {made[1]}; say with the key `head` what it is made of."
        if self.token_ids != other.token_ids:
            return (
                f"has a tokenizer that makes other token ids than that of {called}; if one of them is right for all, name it with the "
                "key `tokenizer`."
            )
        return ""


def _weighted(heads: Heads) -> Iterable[tuple[str, float]]:
    return zip(heads.labels, heads.reward_weights, strict=True)


def _golden_token_ids(renderer: Renderer) -> list[Sequence[int]]:
    from rm_plugins.models.golden import golden_rows

    return list(golden_rows(Renderer(renderer.tokenizer, replace(renderer.rendering, max_length=None)))[1])
