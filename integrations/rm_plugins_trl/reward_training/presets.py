"""Hyperparameters to start from, by the kind and size of the model. Importing this module does not import trl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from rm_plugins.errors import SpecError

_WARMUP_NAMES = ("warmup_steps", "warmup_ratio")


@dataclass(frozen=True, slots=True)
class Preset:
    """Hyperparameters to start with.

    Args:
        name: The models that it is for: ``7-13B``, or ``7-13B, LoRA``.
        learning_rate: The highest learning rate.
        per_device_train_batch_size: Dataset rows per device and step.
        num_train_epochs: Passes over the data.
        warmup_steps: The share of all steps over which the learning rate rises, in [0, 1).
    """

    name: str
    learning_rate: float
    per_device_train_batch_size: int
    num_train_epochs: float
    warmup_steps: float

    def settings(self) -> dict[str, float]:
        """The preset as training arguments of the installed transformers.

        From transformers 5 on, ``warmup_steps`` below 1 is a share of the steps. Before, it was a number of steps only, and the share was
        ``warmup_ratio``.
        """
        warmup = "warmup_steps" if int(version("transformers").partition(".")[0]) >= 5 else "warmup_ratio"
        return {
            "learning_rate": self.learning_rate,
            "per_device_train_batch_size": self.per_device_train_batch_size,
            "num_train_epochs": self.num_train_epochs,
            warmup: self.warmup_steps,
        }

    def applied(self, given: Mapping[str, Any]) -> dict[str, float]:
        """The settings for the keys of `given` whose value is None. Other values are kept, and keys not in `given` are not set.

        A warm-up that was given under either of its two names is kept.

        >>> preset(500_000_000, adapter=False).applied({"learning_rate": None, "num_train_epochs": 2.0})
        {'learning_rate': 2e-05}
        """
        said = any(given.get(name) is not None for name in _WARMUP_NAMES)
        return {
            name: value
            for name, value in self.settings().items()
            if name in given and given[name] is None and not (said and name in _WARMUP_NAMES)
        }


def preset(parameters: int, *, adapter: bool, encoder: bool = False) -> Preset:
    """The preset for a model.

    | model | learning rate | with LoRA | rows per device | epochs |
    |---|---|---|---|---|
    | encoder below 100 million parameters | 1e-4 | 1e-3 | 8 | 1 |
    | below 1 billion | 2e-5 | 2e-4 | 8 | 1 |
    | 1 to below 7 billion | 1e-5 | 1e-4 | 4 | 1 |
    | 7 to 13 billion | 5e-6 | 5e-5 | 2 | 1 |
    | above | 2e-6 | 2e-5 | 1 | 1 |

    - **Small encoders**: the rates were measured on MiniLM, as ``docs/training.md`` shows: with 2e-5 (2e-4 as LoRA), one epoch over 500
      pairs hardly moves it. As LoRA, 1e-3 and 2e-3 did not differ significantly.
    - **Learning rate of the others**: it falls with size and follows published trainings. Reward models below 1B were trained with 1e-5
      to 5e-5, and those of 1-7B with 2e-6 to 1e-5. Those of 7-13B were trained with 2e-6 to 9e-6; InstructGPT's of 6B and OpenRLHF's of
      8B used 9e-6. Those of 70B were trained with 1e-6 to 5e-6; Llama 2's used 5e-6 for 512 pairs per step (arXiv 2307.09288, section
      3.2.2). Models above 13B get the lower half of that range, because fewer pairs per step need a lower rate.
    - **LoRA of the others**: ten times the rate, which "LoRA Without Regret" (Schulman et al. 2025) found best over many models. TRL's
      own example trains a 0.5B reward model with 1e-5 in full and with 1e-4 as LoRA.
    - **Rows per device**: as many as are common for the size (4 to 8, 2 to 4, 1 to 2). Gradient checkpointing, TRL's default, keeps
      activations small compared with weights and optimizer. The number of devices and ``gradient_accumulation_steps``, which the user
      sets, bring a step to the usual 64 to 128 pairs.
    - **Epochs**: one. Reward models overfit quickly with more (InstructGPT, arXiv 2203.02155, appendix C.2; Llama 2 too).
    - **Warm-up**: 5% of the steps. Llama 2 and OpenRLHF take 3% of thousands of steps; shorter runs need a little more.

    Args:
        parameters: The number of the whole model's parameters, frozen ones included.
        adapter: Whether a LoRA adapter is trained instead of the whole model.
        encoder: Whether the model is an encoder, such as BERT, and not a decoder.

    Raises:
        SpecError: The number of parameters is 0, as for a model whose weights are sharded over processes.

    >>> print(preset(1_500_000_000, adapter=True).name)
    1-7B, LoRA
    >>> print(preset(22_700_000, adapter=False, encoder=True).name)
    encoder <100M
    """
    if parameters < 1:
        raise SpecError(
            f"A preset needs the number of the model's parameters, not {parameters}. Count them before the weights are sharded, "
            "or set the hyperparameters yourself."
        )
    if encoder and parameters < 1e8:
        name, full, lora, batch_size = "encoder <100M", 1e-4, 1e-3, 8
    elif parameters < 1e9:
        name, full, lora, batch_size = "<1B", 2e-5, 2e-4, 8
    elif parameters < 7e9:
        name, full, lora, batch_size = "1-7B", 1e-5, 1e-4, 4
    elif parameters <= 13e9:
        name, full, lora, batch_size = "7-13B", 5e-6, 5e-5, 2
    else:
        name, full, lora, batch_size = ">13B", 2e-6, 2e-5, 1
    return Preset(
        name=f"{name}, LoRA" if adapter else name,
        learning_rate=lora if adapter else full,
        per_device_train_batch_size=batch_size,
        num_train_epochs=1.0,
        warmup_steps=0.05,
    )
