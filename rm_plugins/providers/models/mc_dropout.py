"""One model as an ensemble: with some of its features left out, others in every pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from rm_plugins.constructor_schema import takes_settings
from rm_plugins.errors import SpecError
from rm_plugins.models.settings import ModelSettings
from rm_plugins.provider import Aggregate, ModelSource, Transform
from rm_plugins.providers.models.model_provider import ModelMember, ModelProvider

__all__ = ["McDropout"]


class McDropout(ModelProvider):
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

    @takes_settings(ModelSettings)
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
        from rm_plugins.models.fixed_dropout import load_with_dropout

        trained = load_with_dropout(model, ModelSettings(**settings), passes=passes, rate=rate, seed=seed)
        label = Path(model).name or self.name
        super().__init__(
            trained,
            label=label,
            members=[
                ModelMember(trained, number, label=f"pass {number} of {label}", statistics=trained.statistics)
                for number in range(passes)
            ],
            aggregate=aggregate,
            member_transforms=member_transforms,
            common_scale=True,  # the passes are of one model
        )
