"""One model as an ensemble: Monte Carlo dropout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from rm_plugins.component import Aggregate, ModelSource, Transform
from rm_plugins.constructor_schema import takes_settings
from rm_plugins.errors import SpecError
from rm_plugins.models.settings import ModelSettings
from rm_plugins.providers.models.model_provider import ModelMember, ModelProvider


class McDropout(ModelProvider):
    """A model's rewards in several passes with dropout: Monte Carlo dropout (arXiv 1506.02142). Their spread shows its uncertainty.

    Each pass is one fixed network: its dropout masks are the same for every row and every token, as in variational dropout (arXiv
    1512.05287). The masks depend only on the seed, the number of the pass and the layer's name, so a score is the same in every batch
    and every process. The other keys are those of a `SequenceClassifier`.

    A model with dropout layers runs once per pass. One without (Llama, Qwen) drops inputs of its score head, and its backbone runs once
    for all passes. Attention weights are never dropped.

    Args:
        model: The folder or id.
        passes: The number of passes, which are the members.
        rate: The share of features that are dropped; the model's own rates if unset, or 0.1 where it has none.
        seed: The seed of the masks.
        aggregate: How the passes' rewards are combined; their mean if unset.
        member_transforms: One per pass, applied before aggregating.

    Raises:
        SpecError: There are fewer than two passes, or `rate` is not between 0 and 1.
        ModelError: As for a `SequenceClassifier`, or the model has no layer for dropout.
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
            raise SpecError(f"there must be two or more, as one has no spread; not {passes}.", key="passes")
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
