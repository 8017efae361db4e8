"""The value functions of PPO: a head on the policy's hidden states, or a model of their own."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rm_plugins.engine.token_forward import TokenForward
from rm_plugins.errors import DataError, ModelError, UnsupportedError
from rm_plugins.files import output_errors, replacing_folder
from rm_plugins.models.embeddings import embedded_positions, embedded_tokens
from rm_plugins.models.model_folder import read_model_json
from rm_plugins_trl.ppo.value_models import load_value_model, without_dropout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FOLDER = "critic"
"""The folder of a checkpoint that the critic is in."""
_SETTINGS = "critic.json"
_HEAD_WEIGHTS = "value_head.safetensors"


class Critic(nn.Module, ABC):
    """Gives each token of a completion the value of the text before it: the sum of the rewards that are to come.

    `forward` is the entry point, so that wrappers such as DDP see each use.
    """

    needs_hidden: ClassVar[bool]
    """Whether it reads the policy's hidden states instead of token ids."""
    kind: ClassVar[str]
    """Its name in a saved critic."""

    @abstractmethod
    def forward(
        self,
        rows: Sequence[Sequence[int]] | None = None,
        starts: Sequence[int] | None = None,
        hidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The values of the T completion tokens of N rows, in the order of the rows.

        Args:
            rows: Token ids of prompt and completion, [N] lists without padding.
            starts: The number of prompt tokens of each row, [N].
            hidden: The policy's last hidden states at the positions before each completion token, [T, size].

        Returns:
            float32 [T], with gradients.
        """

    def values(self, rows: Sequence[Sequence[int]], starts: Sequence[int], hidden: torch.Tensor | None = None) -> torch.Tensor:
        """What `forward` returns."""
        values: torch.Tensor = self(rows=rows, starts=starts, hidden=hidden)
        return values

    def attention(self) -> AbstractContextManager[Any]:
        """The context in which values and their gradients must be computed."""
        return nullcontext()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Compute activations again in the backward pass; a critic without layers of its own has none to save."""

    def save(self, folder: Path) -> None:
        """Replace ``folder/critic`` in one step by the weights, as safetensors, and settings. Only one process may call it.

        Args:
            folder: The folder of a checkpoint, which is created if it does not exist.

        Raises:
            OutputError: It cannot be written.
        """
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with replacing_folder(folder / FOLDER) as new:
            self._save_weights(new)
            text = json.dumps({"kind": self.kind, **self._settings()}, indent=2)
            (new / _SETTINGS).write_text(f"{text}\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Take over the weights that `save` wrote; the parameters stay the same objects, which the optimizer knows.

        Args:
            folder: The folder of the checkpoint, or the folder ``critic`` in it.

        Raises:
            ModelError: There is no critic, or it is of another kind or size.
        """
        place, settings = read_settings(folder)
        if settings["kind"] != self.kind:
            raise ModelError(f"The critic in {place} is a {settings['kind']}, but this training has a {self.kind}.")
        self._load_weights(place, settings)

    @abstractmethod
    def _save_weights(self, folder: Path) -> None: ...

    @abstractmethod
    def _load_weights(self, folder: Path, settings: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _settings(self) -> dict[str, Any]: ...


class ValueHead(Critic):
    """A linear layer on the hidden states of the policy, which then is policy and critic in one forward pass.

    It needs no memory of a second model, and is the cheap choice for a policy with LoRA (``peft_config``). The weights begin at zero, as in
    OpenAI's lm-human-preferences (arXiv 1909.08593). All values are then zero until it has learned, and the first gradients do not change
    the trunk. It computes in float32, also under autocast.

    Args:
        size: The size of a hidden state.
        detach: Whether its loss leaves the trunk unchanged; else its gradients reach the policy through `hidden`.
    """

    needs_hidden: ClassVar[bool] = True
    kind: ClassVar[str] = "value head"

    def __init__(self, size: int, *, detach: bool = False) -> None:
        super().__init__()
        self.score = nn.Linear(size, 1, dtype=torch.float32)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.detach = detach

    @classmethod
    def of(cls, policy: PreTrainedModel, *, detach: bool = False) -> ValueHead:
        """A head for the hidden states that the policy's language-model head reads."""
        return cls(_hidden_size(policy), detach=detach)

    def forward(
        self,
        rows: Sequence[Sequence[int]] | None = None,
        starts: Sequence[int] | None = None,
        hidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The values of hidden states; see `Critic.forward`.

        Raises:
            UnsupportedError: `hidden` is missing, because the policy's forward pass gave none.
        """
        if hidden is None:
            raise UnsupportedError("A value head reads the policy's hidden states; pass them as `hidden`.")
        with torch.autocast(hidden.device.type, enabled=False):
            states = hidden.detach() if self.detach else hidden
            values: torch.Tensor = self.score(states.to(self.score.weight.dtype)).float().squeeze(-1)
        return values

    def _save_weights(self, folder: Path) -> None:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.score.state_dict().items()}
        save_file(weights, folder / _HEAD_WEIGHTS)

    def _load_weights(self, folder: Path, settings: Mapping[str, Any]) -> None:
        size = self.score.in_features
        if settings.get("size") != size:
            raise ModelError(
                f"The value head in {folder} reads hidden states of size {settings.get('size')}, but the policy's have size {size}."
            )
        file = folder / _HEAD_WEIGHTS
        try:
            self.score.load_state_dict(load_file(file))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelError(f"The value head in {file} cannot be loaded: {error}") from error

    def _settings(self) -> dict[str, Any]:
        return {"size": self.score.in_features, "detach": self.detach}


class ValueModel(Critic):
    """A sequence classifier of its own with one label, whose score at each token is the value.

    All of its weights are trained, so with AdamW in float32 it takes 16 bytes a parameter (weights, gradients and two moments), as much as
    a policy that is trained whole. Its dropout is switched off: values of one text would differ between rollout and training.

    Args:
        model: A decoder with one label; its ``forward`` is replaced by a `TokenForward`.
        max_tokens: The token budget of a micro-batch; by default chosen for the model's device.
        shift: What is added to a score, so that values begin on the scale of a transformed reward.
        vocabulary: A digest of the policy's vocabulary, by which a saved critic is recognized.
    """

    needs_hidden: ClassVar[bool] = False
    kind: ClassVar[str] = "value model"

    def __init__(
        self,
        model: PreTrainedModel,
        max_tokens: int | None = None,
        *,
        shift: float = 0.0,
        vocabulary: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.shift = shift
        self.vocabulary = vocabulary
        self._known_tokens, self._known_positions = embedded_tokens(model), embedded_positions(model)
        self.token_forward = TokenForward(without_dropout(model), max_tokens)

    def forward(
        self,
        rows: Sequence[Sequence[int]] | None = None,
        starts: Sequence[int] | None = None,
        hidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The values of token ids; `hidden` is ignored. See `Critic.forward`.

        Raises:
            UnsupportedError: `rows` or `starts` is missing.
            DataError: A row is longer than the model's positions, or has a token id that it does not know.
        """
        if rows is None or starts is None:
            raise UnsupportedError("A value model reads token ids; pass `rows` and `starts`.")
        self._check(rows)
        values: torch.Tensor = self.model(rows=rows, completion_starts=starts).token_values
        return values.float() + self.shift

    def attention(self) -> AbstractContextManager[Any]:
        """The context in which values and their gradients must be computed: that of packed rows."""
        return self.token_forward.attention()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Keep only the inputs of layers, and compute the rest again in the backward pass.

        Args:
            gradient_checkpointing_kwargs: Passed to transformers.
        """
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def _check(self, rows: Sequence[Sequence[int]]) -> None:
        longest = max(map(len, rows), default=0)
        if longest > self._known_positions:
            raise DataError(
                f"A row has {longest:,} tokens, and the value model {self._known_positions:,} positions. Use a value model with more, or a "
                "smaller max_completion_length."
            )
        most = max((max(row) for row in rows if row), default=0)
        if most >= self._known_tokens:
            raise DataError(
                f"A row has the token id {most:,}, and the value model has embeddings of {self._known_tokens:,} token ids. Use a value "
                "model whose embeddings have as many rows as the policy's, such as critic='policy'."
            )

    def _save_weights(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def _load_weights(self, folder: Path, settings: Mapping[str, Any]) -> None:
        trusted = type(self.model).__module__.startswith("transformers_modules.")  # it was allowed when this one was made
        saved, _ = load_value_model(str(folder), self.model.dtype, trust_remote_code=trusted)
        try:
            self.model.load_state_dict(saved.state_dict())
        except RuntimeError as error:
            raise ModelError(f"The value model in {folder} does not fit this one: {error}") from error
        self.shift = float(settings.get("shift", 0.0))

    def _settings(self) -> dict[str, Any]:
        return {"shift": self.shift, "vocabulary": self.vocabulary}


def saved_critic(folder: Path) -> Path | None:
    """The folder of a critic that `Critic.save` wrote: `folder` itself, or ``critic`` in it; None if there is none."""
    return next((place for place in (folder, folder / FOLDER) if (place / _SETTINGS).is_file()), None)


def read_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and the settings of a saved critic.

    Raises:
        ModelError: There is none, or it is of an unknown kind.
    """
    place = saved_critic(folder)
    if place is None:
        raise ModelError(f"{folder} holds no critic: neither it nor its folder {FOLDER!r} has a file {_SETTINGS}.")
    settings = read_model_json(place / _SETTINGS)
    kinds = [ValueHead.kind, ValueModel.kind]
    if settings.get("kind") not in kinds:
        raise ModelError(
            f"{place / _SETTINGS} has the kind {settings.get('kind')!r}, and a critic is one of {', '.join(kinds)}."
        )
    return place, settings


def _hidden_size(policy: Any) -> int:
    """The size of what the language-model head reads, which OPT projects to another size than `hidden_size`."""
    head = policy.get_output_embeddings()
    return int(getattr(head, "in_features", None) or policy.config.get_text_config().hidden_size)
