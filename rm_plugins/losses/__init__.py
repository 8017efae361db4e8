"""Reward-model losses and regularizers: small functions of one flat batch of rewards, one family a file."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import getmembers, isclass

from rm_plugins.hooks import hookimpl
from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.loss import Loss, Regularizer
from rm_plugins.losses.needs import Need

__all__ = ["Loss", "Need", "Regularizer", "RewardBatch", "rm_register_losses", "rm_register_regularizers"]


@hookimpl
def rm_register_losses() -> Sequence[type[Loss]]:
    """The built-in losses: those that each family's file defines."""
    from rm_plugins.losses import (
        binary,
        bradley_terry,
        grm,
        listwise,
        margins,
        mean_variance,
        odin,
        ratings,
        thurstone,
        ties,
    )

    families = (binary, bradley_terry, grm, listwise, margins, mean_variance, odin, ratings, thurstone, ties)
    classes = [cls for family in families for _, cls in getmembers(family, isclass) if cls.__module__ == family.__name__]
    return sorted((cls for cls in classes if issubclass(cls, Loss)), key=lambda loss: loss.name)


@hookimpl
def rm_register_regularizers() -> Sequence[type[Regularizer]]:
    """The built-in regularizers."""
    from rm_plugins.losses.regularizers import Centering, LengthCorrelation, LogBarrier, ScoreL2

    return [Centering, LengthCorrelation, LogBarrier, ScoreL2]
