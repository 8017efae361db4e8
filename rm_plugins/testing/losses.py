"""The contract check of losses."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rm_plugins.losses import Loss, RewardBatch


def check_loss(loss: Loss, batch: RewardBatch) -> float:
    """Check that a loss fulfils its contract: a finite scalar with the right gradient, also at extreme rewards.

    Args:
        loss: The loss.
        batch: A batch of the loss's kind with float64 rewards and at least one item of those that the loss averages over.

    Returns:
        The loss of the batch.

    Raises:
        AssertionError: The loss breaks the contract; the message says how.
        torch.autograd.gradcheck.GradcheckError: The gradient does not match the value.
    """
    import torch

    assert isinstance(type(loss).name, str), "the class has no `name`"
    assert batch.rewards.dtype == torch.float64, "check_loss needs float64 rewards, to compare gradients"

    def of(rewards: torch.Tensor) -> torch.Tensor:
        state = copy.deepcopy(loss.state())
        value = loss(replace(batch, rewards=rewards))
        loss.load_state(state)  # the loss's state must not change between evaluations
        return value

    rewards = batch.rewards.detach().clone().requires_grad_()
    value = of(rewards)
    assert value.shape == (), f"the loss must be a scalar; its shape is {tuple(value.shape)}"
    assert bool(value.isfinite()), f"the loss is {value.item()}"
    assert value.requires_grad, "the loss has no gradient with respect to the rewards"
    if not loss.state():  # a state computed from earlier rewards is not part of the gradient
        torch.autograd.gradcheck(of, (rewards,))
    for scale in (1e4, -1e4):
        far = (batch.rewards.detach() * (scale / batch.rewards.detach().abs().max())).requires_grad_()
        distant = of(far)
        (gradient,) = torch.autograd.grad(distant, far)
        assert bool(distant.isfinite()), f"the loss is {distant.item()} at rewards of {abs(scale):g}"
        assert bool(gradient.isfinite().all()), f"the gradient is not finite at rewards of {abs(scale):g}"
    return value.item()
