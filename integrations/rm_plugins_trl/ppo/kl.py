"""The KL divergence between policies: its estimates for tokens, and the control of its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

KlEstimator: TypeAlias = Literal["k1", "k3"]

_MOST_CHANGE = 0.2


def kl_terms(log_probs: Tensor, ref_log_probs: Tensor, estimator: KlEstimator) -> Tensor:
    """An estimate of the KL divergence from the reference at each token, of the same shape.

    With ``d = log p - log q``: ``k1 = d``, which is unbiased, and ``k3 = exp(-d) - 1 + d``, which is never negative and varies less.

    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.

    Args:
        log_probs: Log-probabilities under the policy that chose the tokens.
        ref_log_probs: Those under the reference.
        estimator: Which estimate.
    """
    difference = log_probs - ref_log_probs
    return difference if estimator == "k1" else (-difference).exp() - 1 + difference


@dataclass
class AdaptiveKl:
    """Changes the weight of the KL penalty so that the KL divergence approaches a target.

    After B completions: ``weight *= 1 + clip(kl / target - 1, -0.2, 0.2) * B / horizon`` (Ziegler et al. 2019, arXiv:1909.08593,
    section 2.2).

    Args:
        weight: The weight now.
        target: The KL divergence of a completion to keep; None keeps the weight.
        horizon: Over how many completions the weight adapts.

    >>> control = AdaptiveKl(weight=0.1, target=6.0, horizon=100)
    >>> control.update(kl=12.0, completions=10)
    >>> round(control.weight, 6)
    0.102
    """

    weight: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, completions: int) -> None:
        """Take in the mean KL divergence of a number of completions."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -_MOST_CHANGE), _MOST_CHANGE)
            self.weight *= 1 + error * completions / self.horizon
