"""The arguments of `RewardTrainer`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from trl import RewardConfig as TrlRewardConfig

from rm_plugins.errors import SpecError
from rm_plugins.losses import Loss
from rm_plugins_trl.configs import bf16_by_default, with_help
from rm_plugins_trl.reward_training.presets import Preset
from rm_plugins_trl.reward_training.quiet import without_noise

_TRL_DEFAULTS = {"learning_rate": 1e-4, "per_device_train_batch_size": 8, "num_train_epochs": 3.0, "warmup_steps": 0}
"""What a preset sets, with TRL's own values, which apply without a preset and in TRL's trainer."""


@with_help
@dataclass
class RewardConfig(TrlRewardConfig):
    """TRL's ``RewardConfig`` plus the loss, the model's outputs, how rows are batched, and what is monitored.

    Hyperparameters that are not given come from the preset for the model's kind and size (`rm_plugins_trl.reward_training.presets`). Unlike
    TRL's, it works on a machine without an accelerator: ``bf16`` is on by default only if an accelerator supports it. These descriptions
    are also the help on the command line.

    Args:
        learning_rate: The initial learning rate; the preset's if unset.
        per_device_train_batch_size: Dataset rows per step on each device; the preset's if unset.
        num_train_epochs: Passes over the training data; the preset's if unset.
        warmup_steps: Steps of warm-up, or a share of all steps if below 1; the preset's if unset.
        loss: The name of a registered loss, ``module:Name`` of your own, a mapping ``{"name": NAME, ...}`` with its arguments (JSON on a
            command line), or a `rm_plugins.losses.Loss`.
        regularizers: The terms added to the loss: name to weight (JSON on a command line).
            ``center_rewards_coefficient`` is the same as ``{"centering": ...}``.
        overlong: For a dataset row with a text of more than ``max_length`` tokens: ``drop`` leaves the row out, as in TRL, and
            ``truncate`` cuts the beginning of the text. The rows are counted and reported.
        read: The token of a row at which a decoder is scored. ``before-padding`` is the last token that is not padding, as in TRL and
            transformers. ``last`` is the last token of any kind, as in OpenRLHF and vLLM. They differ only if the padding token is also the
            EOS token that ends a text. The manifest records it.
        pair: Whether a prompt and a completion are encoded as a pair, with separators and token types, as for cross-encoders. If
            not, they are one text, as in TRL.
        attributes: The attributes of ratings, in the order of the model's outputs; those of the first row if unset.
        reward: The weight of each attribute in the reward (JSON on a command line); equal weights if unset. The same weights decide
            which of two rated completions is better.
        members: The number of members of an ensemble: score heads, initialized differently, on one backbone.
        bootstrap: Whether each member trains on its own Poisson bootstrap of the dataset's rows.
        section_column: The column with the section of a row; evaluations report the accuracy of each section.
        weight_column: The column with the weight of a row in the loss; None or an empty name for no weights.
        max_batch_tokens: The most tokens that the model computes at a time; by default it depends on the device.
        share_prompts: Whether a prefix that several rows of a batch share is computed once, if the model allows it.
        early_stopping_patience: Training stops after this many evaluations without a better ``metric_for_best_model`` (accuracy if
            unset), and loads the best model.
        resume_changed: Whether to resume from a checkpoint although the base model, the data, the loss or the rendering has changed.
            Without it, such a checkpoint is refused. The manifest records the changes.
        merge_adapter: Whether to save the final model of a LoRA training as a whole model instead of an adapter.
        preset: Where learning rate, rows per device, epochs and warm-up come from if they are not given. ``auto`` takes them from the
            preset for the model's kind and size, ``none`` from TRL's defaults: 1e-4, 8, 3 and no warm-up.
        overwrite_output_dir: Whether training may overwrite a finished model or checkpoints in ``output_dir``.

    Raises:
        SpecError: A JSON value cannot be read, or settings contradict each other.
    """

    learning_rate: float | None = None
    per_device_train_batch_size: int | None = None
    num_train_epochs: float | None = None
    warmup_steps: float | None = None
    loss: dict[str, Any] | str | Loss | None = "bradley-terry"
    regularizers: dict[str, float] | str | None = None
    overlong: Literal["drop", "truncate"] = "drop"
    read: Literal["last", "before-padding"] = "before-padding"
    pair: bool = False
    attributes: list[str] | None = None
    reward: dict[str, float] | str | None = None
    members: int = 1
    bootstrap: bool = False
    section_column: str | None = None
    weight_column: str | None = "weight"
    max_batch_tokens: int | None = None
    share_prompts: bool = True
    early_stopping_patience: int | None = None
    resume_changed: bool = False
    merge_adapter: bool = False
    preset: Literal["auto", "none"] = "auto"
    overwrite_output_dir: bool = False

    def __post_init__(self) -> None:
        given: bool | None = vars(self)["bf16"]
        self.bf16 = bf16_by_default(self.fp16) if given is None else given
        for name in ("loss", "regularizers", "reward"):
            value = getattr(self, name)
            if isinstance(value, str) and (name != "loss" or value.lstrip().startswith("{")):
                setattr(self, name, _from_json(name, value))
        self.weight_column = self.weight_column or None
        if self.read not in ("before-padding", "last"):
            raise SpecError(f"read must be 'before-padding' or 'last', not {self.read!r}.")
        if self.preset not in ("auto", "none"):
            raise SpecError(f"preset must be 'auto' or 'none', not {self.preset!r}.")
        if self.members < 1 or (self.bootstrap and self.members == 1):
            raise SpecError(f"members must be at least 1, and at least 2 for a bootstrap, not {self.members}.")
        if self.early_stopping_patience is not None:
            if self.eval_strategy == "no":
                raise SpecError("early_stopping_patience needs evaluations: set eval_strategy to 'steps' or 'epoch'.")
            self.load_best_model_at_end = True
            if vars(self)["metric_for_best_model"] is None:
                self.metric_for_best_model, self.greater_is_better = "accuracy", True
        unset = [name for name in _TRL_DEFAULTS if getattr(self, name) is None]
        for name in unset:
            setattr(self, name, _TRL_DEFAULTS[name])
        if getattr(self, "warmup_ratio", None):
            unset = [name for name in unset if name != "warmup_steps"]
        with without_noise():
            super().__post_init__()
        self.unset = () if self.preset == "none" else tuple(unset)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, which then counts as given and is not set by the preset."""
        super().__setattr__(name, value)
        set_now = "warmup_steps" if name == "warmup_ratio" else name
        if set_now in vars(self).get("unset", ()):
            self.unset = tuple(one for one in self.unset if one != set_now)

    def take_preset(self, preset: Preset) -> tuple[str | None, str]:
        """Take a preset's values for hyperparameters that were not given.

        Returns:
            The values that were taken, as the manifest records them, or None if all were given; and a line about them for the user.
        """
        taken = self.apply_preset(preset)
        values = {name: getattr(self, name) for name in preset.settings()}
        if getattr(self, "warmup_ratio", None) and "warmup_steps" not in taken:
            values = {**values, "warmup_ratio": self.warmup_ratio}
            values.pop("warmup_steps", None)
        given = ", ".join(f"{name} {value:g}" for name, value in values.items() if name not in taken)
        chosen = ", ".join(f"{name} {value:g}" for name, value in taken.items())
        notice = f"The preset {preset.name!r} sets {chosen}. {f'You set {given}. ' if given else ''}Set preset='none' for TRL's defaults."
        return (f"{preset.name}: {chosen}" if taken else None), notice

    def apply_preset(self, preset: Preset) -> dict[str, Any]:
        """Take a preset's values for hyperparameters that were not given; returns them."""
        given = dict.fromkeys(self.unset)
        if "warmup_steps" in given:
            given["warmup_ratio"] = None  # its name before transformers 5
        taken = preset.applied(given)
        for name, value in taken.items():
            setattr(self, name, value)
        self.unset = ()
        return taken

    @property
    def regularizer_weights(self) -> dict[str, float]:
        """Name to weight, TRL's ``center_rewards_coefficient`` included.

        Raises:
            SpecError: Centering was given twice, or a weight is not a number.
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
        values: dict[str, Any] = super().to_dict()
        if not isinstance(self.loss, (str, dict)):
            values["loss"] = getattr(self.loss, "name", getattr(self.loss, "__name__", repr(self.loss)))
        return values


def _from_json(name: str, text: str) -> dict[str, Any]:
    try:
        mapping = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"{name}: {text!r} is not valid JSON: {error}.") from error
    if not isinstance(mapping, dict):
        raise SpecError(f"{name}: {text!r} must be a JSON mapping.")
    return mapping
