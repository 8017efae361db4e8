"""Reward-model losses and regularizers: small functions of one flat batch of rewards, one family a file."""

from __future__ import annotations

from collections.abc import Sequence

from rm_plugins.hooks import hookimpl
from rm_plugins.losses.batch import RewardBatch
from rm_plugins.losses.loss import Loss, Regularizer
from rm_plugins.losses.needs import Need

__all__ = ["Loss", "Need", "Regularizer", "RewardBatch", "rm_register_losses", "rm_register_regularizers"]


@hookimpl
def rm_register_losses() -> Sequence[type[Loss]]:
    """The built-in losses."""
    from rm_plugins.losses.binary import Bco, Binary
    from rm_plugins.losses.bradley_terry import BradleyTerry, Focal, Robust, Scaled
    from rm_plugins.losses.grm import Grm
    from rm_plugins.losses.hinge import Hinge, SquaredHinge
    from rm_plugins.losses.listwise import InfoNce, KWise, ListNet, PlackettLuce
    from rm_plugins.losses.mean_variance import MeanVariance
    from rm_plugins.losses.odin import Odin
    from rm_plugins.losses.ratings import Quantile, Regression
    from rm_plugins.losses.target_difference import Ipo, MarginMse
    from rm_plugins.losses.thurstone import Thurstone
    from rm_plugins.losses.ties import Davidson, RaoKupper

    return [
        Bco,
        Binary,
        BradleyTerry,
        Davidson,
        Focal,
        Grm,
        Hinge,
        InfoNce,
        Ipo,
        KWise,
        ListNet,
        MarginMse,
        MeanVariance,
        Odin,
        PlackettLuce,
        Quantile,
        RaoKupper,
        Regression,
        Robust,
        Scaled,
        SquaredHinge,
        Thurstone,
    ]


@hookimpl
def rm_register_regularizers() -> Sequence[type[Regularizer]]:
    """The built-in regularizers."""
    from rm_plugins.losses.centering import Centering
    from rm_plugins.losses.length_correlation import LengthCorrelation
    from rm_plugins.losses.reward_size import LogBarrier, ScoreL2

    return [Centering, LengthCorrelation, LogBarrier, ScoreL2]
