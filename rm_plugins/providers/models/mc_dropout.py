"""One model as an ensemble: with some of its features left out, others in every pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rm_plugins.errors import SpecError
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import ScoreStatistics
from rm_plugins.provider import Aggregate, ModelSource, Transform
from rm_plugins.providers.models.inherited_keys import hands_on
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier

__all__ = ["McDropout"]


class McDropout(SequenceClassifier):
    """A model's rewards under dropout, several times: Monte Carlo dropout (arXiv 1506.02142), whose spread tells how unsure it is.

    Each pass is one network with features left out, by masks that are the same for every row and every token, as in variational
    dropout (arXiv 1512.05287). They are drawn once, from the seed, the number of the pass and the layer's name: a score is the same in
    every batch and every process. The other keys are those of a `SequenceClassifier`.

    A model with dropout layers runs once for each pass. One without (Llama, Qwen) drops features of its score head's input, and
    its backbone runs once for all passes. Attention weights are never dropped.

    Args:
        model: The folder or id.
        passes: The number of passes, which are the members.
        rate: The share of features that is left out; the model's own rates if unset, and 0.1 where it has none.
        seed: Other seeds make other masks.
        aggregate: How the passes' rewards become one; their mean if unset.
        member_transforms: One for each pass, before they are aggregated.

    Raises:
        SpecError: There are fewer than two passes, or `rate` is not between 0 and 1.
        ModelError: As for a `SequenceClassifier`, or the model has nothing that features could be dropped of.
        ManifestError: The manifest does not match the model.
    """

    name: ClassVar[str] = "mc-dropout"

    @hands_on(SequenceClassifier.__init__, without=["common_scale"])
    def __init__(
        self,
        *,
        model: ModelSource,
        passes: int = 8,
        rate: float | None = None,
        seed: int = 0,
        aggregate: Aggregate | None = None,
        member_transforms: Sequence[Transform] | None = None,
        **settings: Any,
    ) -> None:
        if passes < 2:
            raise SpecError(f"there must be two or more, for one has no spread; not {passes}.", key="passes")
        if rate is not None and not 0 < rate < 1:
            raise SpecError(f"it must be above 0 and below 1, not {rate}.", key="rate")
        self._passes = passes
        self._rate = rate
        self._seed = seed
        super().__init__(model=model, **settings)
        self._drop_features()
        # The passes are of one model, and so on one scale.
        self._members = self._combination(aggregate, member_transforms, common_scale=True)

    def _load(self) -> None:
        # What the model scores as it is, for its golden samples, is none of the passes' scores that are kept.
        cache, self._cache = self._cache, None
        super()._load()
        self._cache = cache

    def _drop_features(self) -> None:
        from rm_plugins.models.fixed_dropout import drop_features

        self._heads = Heads(self._heads.labels, self._heads.reward_weights, self._passes)
        self._start(self.model, drop_features(self.model, self._passes, self._rate, self._seed))

    def _described_members(self) -> list[tuple[str, ScoreStatistics | None]]:
        return [(f"pass {number} of {self.label}", self._statistics_in(self.manifest)) for number in range(self._passes)]

    def verify(self) -> list[str]:
        """Compare the manifest with the model as it is without dropout, which is loaded once more for that."""
        plain = SequenceClassifier.__new__(SequenceClassifier)
        plain.__setstate__(self.__getstate__())
        return plain.verify()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._drop_features()
