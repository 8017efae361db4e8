"""The head of a causal language model over chosen hidden states, without the logits of all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.autograd.function import once_differentiable
from torch.linalg import vecdot
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from rm_plugins.engine.replaced_forward import forward_as
from rm_plugins.engine.shards import Shards
from rm_plugins.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS_AT_ONCE = 2**25
"""How many logits exist at a time."""

Value = TypeVar("Value")
TokenStatistics = tuple[torch.Tensor, torch.Tensor]


def token_statistics(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> TokenStatistics:
    """The log-probability of each target under softmax(logits / temperature), and that distribution's entropy in nats.

    Args:
        logits: Float [T, vocabulary].
        targets: The chosen tokens, int64 [T].
        temperature: What the logits are divided by.

    Returns:
        Both float [T]: float64 for float64 logits, else float32. Both have gradients.
    """
    with torch.autocast(logits.device.type, enabled=False):  # it would compute the entropy in half precision
        statistics: TokenStatistics = _TokenStatistics.apply(logits, targets, temperature)  # type: ignore[no-untyped-call]
    return statistics


class _TokenStatistics(torch.autograd.Function):
    """With p = softmax(z) and H its entropy: d log p[t] / dz = onehot(t) - p, dH / dz = -p (log p + H)."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> TokenStatistics:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
        logs = wide.sub_(wide.logsumexp(-1, keepdim=True))
        chosen = logs.gather(1, targets[:, None])[:, 0]
        # A token that the model excludes has the logit -inf, and no part in the entropy.
        logs = logs.clamp_(min=torch.finfo(logs.dtype).min)
        probabilities = logs.exp()
        entropy = -vecdot(probabilities, logs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logs, probabilities, entropy, targets)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return chosen, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_chosen: torch.Tensor | None, of_entropy: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, None, None]:
        logs, probabilities, entropy, targets = ctx.saved_tensors
        if of_entropy is not None:
            weights = (logs + entropy[:, None]).mul_(-of_entropy[:, None])
            weights = weights if of_chosen is None else weights.sub_(of_chosen[:, None])
        elif of_chosen is not None:
            weights = -of_chosen[:, None]
        else:
            return None, None, None
        gradient = probabilities * weights
        if of_chosen is not None:
            gradient.scatter_add_(1, targets[:, None], of_chosen[:, None])
        return gradient.div_(ctx.temperature).to(ctx.dtype), None, None


def mean_log_prob(
    head: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, targets: torch.Tensor, vocabulary: int
) -> torch.Tensor:
    """The mean log-probability of targets, a number with gradients; logits exist in chunks, which are computed again for gradients.

    Args:
        head: Maps hidden states [n, size] to logits [n, vocabulary].
        hidden: The hidden states in which the targets were chosen, [T, size].
        targets: int64 [T].
        vocabulary: The number of logits per hidden state.
    """

    def summed(states: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        return cross_entropy(head(states).float(), chosen, reduction="sum")

    size = max(1, LOGITS_AT_ONCE // vocabulary)
    chunks = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    return -torch.stack(_by_chunk(summed, [*chunks])).sum() / len(targets)


def _by_chunk(function: Callable[..., Value], chunks: Sequence[tuple[Any, ...]], *more: Any) -> list[Value]:
    """What the function gives for each chunk. For gradients, all chunks but the last are computed again.

    The gradients of the last chunk are computed first, when nothing else of the head is in memory, so its logits can stay until then.
    """
    recomputed = len(chunks) - 1 if torch.is_grad_enabled() else 0
    return [
        checkpoint(function, *chunk, *more, use_reentrant=False) if number < recomputed else function(*chunk, *more)
        for number, chunk in enumerate(chunks)
    ]


def backbones(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The modules that a causal language model's ``forward`` may call for its last hidden states; inner ones first."""
    modules = [model.get_decoder(), model.base_model]  # OPT's `forward` calls the decoder in its backbone
    return [module for module in dict.fromkeys(modules) if module is not None and module is not model]


class TokenHead:
    """The logits that a model's own ``forward`` makes of last hidden states, in chunks which are computed again for gradients.

    The model's own code runs, with its backbone replaced by the hidden states. So everything that it does to logits is done: a bias, a
    scale, a soft cap, an adapter of the head.

    Args:
        model: The causal language model.
        forward: Its own ``forward``.
    """

    def __init__(self, model: PreTrainedModel, forward: Callable[..., Any]) -> None:
        self.model = model
        self.forward = forward

    def statistics(
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, shards: Shards | None = None
    ) -> TokenStatistics:
        """`token_statistics` of the targets, each [T].

        Args:
            hidden: The last hidden states in which the targets were chosen, float [T, size].
            targets: int64 [T].
            temperature: What the logits are divided by.
            shards: The processes that share the weights; all of them then compute equally many chunks, of which some may be empty.

        Raises:
            UnsupportedError: The model's ``forward`` does not make its logits from its backbone's last hidden states alone.
        """
        size = max(1, LOGITS_AT_ONCE // self.model.config.get_text_config().vocab_size)
        parts = [*zip(torch.split(hidden, size), torch.split(targets, size), strict=True)]
        if shards is not None:
            parts += [(hidden[:0], targets[:0])] * (shards.largest(len(parts))[0] - len(parts))
        chunks = _by_chunk(self._of_chunk, parts, temperature)
        log_probs, entropies = zip(*chunks, strict=True)
        return torch.cat(log_probs), torch.cat(entropies)

    def _of_chunk(self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float) -> TokenStatistics:
        return token_statistics(self.logits(hidden), targets, temperature)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits, float [T, vocabulary], of hidden states [T, size]."""
        given = hidden[None]
        with _backbones_return(given, backbones(self.model)) as calls:
            ids = torch.zeros(given.shape[:2], dtype=torch.int64, device=hidden.device)
            logits: torch.Tensor = self.forward(input_ids=ids, use_cache=False).logits
        if len(calls) != 1:
            raise UnsupportedError(f"{type(self.model).__name__} does not make its logits from its backbone's output alone.")
        return logits[0]


@dataclass
class _BackboneOutput(ModelOutput):  # type: ignore[misc]  # transformers is untyped here
    """A backbone's output of any class: all fields except the hidden states are None."""

    last_hidden_state: torch.Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _backbones_return(hidden: torch.Tensor, modules: list[torch.nn.Module]) -> Iterator[list[int]]:
    """Within it, modules return these hidden states; yields a list that counts the calls."""
    calls: list[int] = []

    def forward(*args: Any, **kwargs: Any) -> _BackboneOutput:
        calls.append(1)
        return _BackboneOutput(last_hidden_state=hidden)

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(forward_as(module, forward))
        yield calls
