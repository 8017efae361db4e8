"""What the author of a plug-in runs in their own tests: contract checks, and a provider to compose with."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rm_plugins.types import Provider, Sample, Scores

if TYPE_CHECKING:
    from rm_plugins.losses import Loss, RewardBatch

__all__ = ["FixedProvider", "check_loss", "check_provider"]


class FixedProvider(Provider):
    """A provider that gives each completion the score it is told to.

    Args:
        scores: A function of a sample; None abstains.

    >>> FixedProvider(scores=lambda sample: float(len(sample.completion))).score([Sample("Q", "abc")]).values
    array([3.])
    """

    name: ClassVar[str] = "fixed"

    def __init__(self, *, scores: Callable[[Sample], float | None]) -> None:
        self.scores = scores
        self.batches: list[int] = []

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score, and remember the size of the batch in `batches`."""
        self.batches.append(len(samples))
        values = [self.scores(sample) for sample in samples]
        return Scores(np.array([np.nan if value is None else value for value in values], dtype=np.float64))


def check_provider(provider: Provider, samples: Sequence[Sample], *, tolerance: float = 1e-4, pickles: bool = True) -> Scores:
    """Check what every consumer of a provider relies on.

    Args:
        provider: The provider.
        samples: At least two different samples that it can score.
        tolerance: How far a sample's score may move between batches, relative to 1 + |score|.
        pickles: Whether to check that it can be pickled, which spawned processes need.

    Returns:
        The scores of `samples`.

    Raises:
        AssertionError: The provider breaks the contract; the message says which part.
    """
    assert len(samples) > 1, "check_provider needs at least two samples"
    assert isinstance(type(provider).name, str), "the class has no `name`"
    assert len(provider.score([])) == 0, "an empty batch must give empty scores"
    scores = provider.score(samples)

    def same(found: Scores, expected: Scores, what: str) -> None:
        gap = np.abs(found.values - expected.values)
        near = (gap <= tolerance * (1 + np.abs(expected.values))) | (found.abstained & expected.abstained)
        assert bool(near.all()), f"{what}: {found.values.tolist()} instead of {expected.values.tolist()}"

    same(provider.score(samples), scores, "scoring the same samples again gives other scores")
    backwards = provider.score(samples[::-1])
    same(Scores(backwards.values[::-1]), scores, "the scores do not follow the order of the samples")
    single = Scores(np.concatenate([provider.score([sample]).values for sample in samples]))
    same(single, scores, "a sample's score depends on what else is in its batch")
    doubled = provider.score([*samples, *samples])
    same(Scores(doubled.values[len(samples) :]), scores, "duplicates of a sample get other scores")
    if pickles:
        same(pickle.loads(pickle.dumps(provider)).score(samples), scores, "the provider scores otherwise after pickling")
    return scores


def check_loss(loss: Loss, batch: RewardBatch) -> float:
    """Check what a trainer relies on of a loss over pairs, or of one over anything else, given a batch of its kind.

    Args:
        loss: The loss.
        batch: A batch with at least one item that the loss is a mean over, whose rewards are float64.

    Returns:
        The loss of the batch.

    Raises:
        AssertionError: The loss breaks the contract; the message says which part.
        torch.autograd.gradcheck.GradcheckError: Its gradient is not that of its value.
    """
    import torch

    assert isinstance(type(loss).name, str), "the class has no `name`"
    assert batch.rewards.dtype == torch.float64, "check_loss needs rewards in float64, for gradients to be compared"

    def of(rewards: torch.Tensor) -> torch.Tensor:
        state = copy.deepcopy(loss.state())
        found = loss(replace(batch, rewards=rewards))
        loss.load_state(state)  # what it remembers must not tell one evaluation from the next
        return found

    rewards = batch.rewards.detach().clone().requires_grad_()
    value = of(rewards)
    assert value.shape == (), f"the loss must be a scalar, not of the shape {tuple(value.shape)}"
    assert bool(value.isfinite()), f"the loss is {value.item()}"
    assert value.requires_grad, "the loss does not depend on the rewards in a way that gradients follow"
    if not loss.state():  # what is remembered of the rewards has no part in the gradient
        torch.autograd.gradcheck(of, (rewards,))
    for scale in (1e4, -1e4):
        far = (batch.rewards.detach() * (scale / batch.rewards.detach().abs().max())).requires_grad_()
        distant = of(far)
        (gradient,) = torch.autograd.grad(distant, far)
        assert bool(distant.isfinite()), f"the loss is {distant.item()} at rewards of {abs(scale):g}"
        assert bool(gradient.isfinite().all()), f"the gradient is not finite at rewards of {abs(scale):g}"
    return value.item()
