"""Reward-model losses and regularizers: small functions of one flat batch of rewards, one family a file."""

from __future__ import annotations

from collections.abc import Sequence

from rm_plugins.hookspecs import hookimpl
from rm_plugins.losses.batch import Loss, Regularizer, RewardBatch

__all__ = ["Loss", "Regularizer", "RewardBatch", "rm_register_losses", "rm_register_regularizers"]


@hookimpl
def rm_register_losses() -> Sequence[type[Loss]]:
    """The built-in losses."""
    from rm_plugins.losses.bradley_terry import BradleyTerry

    return [BradleyTerry]


@hookimpl
def rm_register_regularizers() -> Sequence[type[Regularizer]]:
    """The built-in regularizers."""
    from rm_plugins.losses.centering import Centering

    return [Centering]
