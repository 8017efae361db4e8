"""The undocumented names of TRL and transformers that this package relies on, each once, with what it is needed for.

Read in TRL 1.12.0 and 1.16.0, and in transformers 4.57.6 and 5.23.0. A release may change them without notice;
``tests/trl/test_trl_internals.py`` fails for each name that changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer
from trl import RewardTrainer
from trl.cli.accelerate_config import resolve_accelerate_config_argument  # `--accelerate_config fsdp2`: a file of TRL's
from trl.trainer.callbacks import SyncRefModelCallback  # follows the policy with the reference
from trl.trainer.utils import create_model_from_path  # float32 by default, on the device that is asked for

if TYPE_CHECKING:
    from transformers import TrainerCallback

try:
    from trl.trainer.reward_trainer import suppress_seqcls_warning
except ImportError:  # pragma: no cover - it only spares a warning
    from contextlib import nullcontext as suppress_seqcls_warning

__all__ = [
    "OpenRewardTrainer",
    "SyncRefModelCallback",
    "callbacks_of",
    "create_model_from_path",
    "fsdp_plugin",
    "is_sharded",
    "place_first",
    "resolve_accelerate_config_argument",
    "suppress_seqcls_warning",
]


class OpenRewardTrainer(RewardTrainer):
    """TRL's ``RewardTrainer``, with the two private places that ours changes under public names."""

    def prepare_dataset(self, dataset: Any, tokenizer: Any, args: Any, name: str) -> Any:
        """Make a dataset what the data collator takes; the tokenizer has been completed as `args` say."""
        return super()._prepare_dataset(dataset, tokenizer, args, name)

    def prepared(self, dataset: Any, name: str) -> Any:
        """A dataset as the trainer's own are prepared, by a subclass too."""
        return self._prepare_dataset(dataset, self.processing_class, self.args, name)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        # A dataset in the format of numpy or torch would give what is made of it in that format, too.
        return self.prepare_dataset(dataset, processing_class, args, dataset_name)

    def save(self, folder: Path, *, checkpoint: bool) -> None:
        """Save the model into a folder: that of a checkpoint, or any other."""
        super().save_model(str(folder), checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # DeepSpeed gives the weights of its engine, though the model that is saved may be another one.
        super()._save(output_dir, state_dict if is_sharded(self) else None)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, by default into ``args.output_dir``."""
        self.save(Path(output_dir or self.args.output_dir), checkpoint=_internal_call)

    # --- With sharded weights -----------------------------------------------------------------------------------------------

    def whole_weights(self) -> dict[str, Any]:
        """The weights of a sharded model, on the CPU of process 0; empty in the others. All processes call it together."""
        weights: dict[str, Any] = self.accelerator.get_state_dict(self.deepspeed if self.is_deepspeed_enabled else self.model)
        return weights

    def save_weights(self, folder: Path, weights: dict[str, Any] | None) -> None:
        """Save the model with these weights in place of its own, unless they are None, and its tokenizer."""
        self._save(str(folder), state_dict=weights)

    def save_configuration(self, folder: Path) -> None:
        """Save what a model folder holds besides the weights."""
        adapters = getattr(self.model, "peft_config", None)
        for configuration in [self.model.config] if adapters is None else adapters.values():
            configuration.save_pretrained(str(folder))
        self.processing_class.save_pretrained(str(folder))

    def publish(self) -> None:
        """Push the saved model to the hub, if the arguments ask for it, as transformers does after it saved one."""
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)


def fsdp_plugin(trainer: Trainer) -> Any:
    """accelerate's settings of FSDP for a trainer; None where it does not use FSDP."""
    return trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None


def callbacks_of(trainer: Trainer) -> list[TrainerCallback]:
    """The callbacks of a trainer, in the order in which they are called."""
    callbacks: list[TrainerCallback] = trainer.callback_handler.callbacks
    return callbacks


def place_first(trainer: Trainer, callbacks: Sequence[TrainerCallback]) -> None:
    """Have a trainer call these callbacks before all others; ``add_callback`` appends."""
    present = callbacks_of(trainer)
    present[:] = [*callbacks, *(callback for callback in present if not any(callback is one for one in callbacks))]


def is_sharded(trainer: Trainer) -> bool:
    """Whether a trainer's weights are spread over its processes."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return bool(trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3))
