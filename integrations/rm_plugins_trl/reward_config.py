"""The arguments of `RewardTrainer`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from trl import RewardConfig as TrlRewardConfig

from rm_plugins.errors import SpecError
from rm_plugins.losses import Loss
from rm_plugins_trl.precision import bf16_by_default

__all__ = ["RewardConfig"]


@dataclass
class RewardConfig(TrlRewardConfig):
    """TRL's ``RewardConfig`` with the loss, its regularizers, and what happens to over-long pairs.

    Unlike TRL's, it starts on a machine without an accelerator: ``bf16`` is on by default only where there is one with it.

    Args:
        loss: The name of a registered loss, a mapping ``{"name": NAME, ...}`` with its arguments (JSON on a command line), or
            a `rm_plugins.losses.Loss`.
        regularizers: Name to weight of the terms added to the loss (JSON on a command line).
            ``center_rewards_coefficient`` is the same as ``{"centering": ...}``.
        overlong: What happens to a pair with a row of more than ``max_length`` tokens: ``drop`` it, as TRL does, or
            ``truncate`` the row on the left. Both are counted and reported.

    Raises:
        SpecError: A JSON value cannot be read.
    """

    loss: dict[str, Any] | str | Loss | None = field(
        default="bradley-terry",
        metadata={"help": 'Loss: a registered name, or JSON such as \'{"name": "bradley-terry"}\'.'},
    )
    regularizers: dict[str, float] | str | None = field(
        default=None,
        metadata={"help": "Terms added to the loss, JSON of name to weight, such as '{\"centering\": 0.01}'."},
    )
    overlong: Literal["drop", "truncate"] = field(
        default="drop",
        metadata={"help": "What happens to a pair with a row longer than max_length: drop it, or truncate it on the left."},
    )

    def __post_init__(self) -> None:
        given: bool | None = vars(self)["bf16"]
        self.bf16 = bf16_by_default(self.fp16) if given is None else given
        if isinstance(self.loss, str) and self.loss.lstrip().startswith("{"):
            self.loss = _from_json("loss", self.loss)
        if isinstance(self.regularizers, str):
            self.regularizers = _from_json("regularizers", self.regularizers)
        super().__post_init__()

    @property
    def regularizer_weights(self) -> dict[str, float]:
        """Name to weight, TRL's ``center_rewards_coefficient`` included.

        Raises:
            SpecError: Centering was given twice, or a weight is no number.
        """
        weights: dict[str, Any] = dict(self.regularizers or {})  # type: ignore[arg-type]  # text was read before
        if self.center_rewards_coefficient is not None:
            if "centering" in weights:
                raise SpecError("Give the centering weight once: in `regularizers` or as `center_rewards_coefficient`.")
            weights["centering"] = self.center_rewards_coefficient
        for name, weight in weights.items():
            if not isinstance(weight, (int, float)):
                raise SpecError(f"regularizers.{name}: the weight must be a number, not {weight!r}.")
        return weights

    def to_dict(self) -> dict[str, Any]:
        """The arguments as plain values, for trackers and files."""
        found: dict[str, Any] = super().to_dict()
        if not isinstance(self.loss, (str, dict)):
            found["loss"] = getattr(self.loss, "name", repr(self.loss))
        return found


def _from_json(name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"{name}: {text!r} is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise SpecError(f"{name}: {text!r} must be a JSON mapping.")
    return found
