"""Transforms of a provider's scores, used as ``transform: NAME`` or ``transform: {name: NAME, ...}``.

An abstention, NaN, stays one. Most transforms look at each score by itself; `RankInGroup` and `ZScoreInGroup` depend on the scores of the
sample's group, and a running `ZScore` on all batches so far.
"""

from __future__ import annotations

from collections.abc import Sequence

from rm_plugins.component import Transform
from rm_plugins.hooks import hookimpl
from rm_plugins.transforms.centred import LogSigmoidCentred, Par
from rm_plugins.transforms.chain import Chain
from rm_plugins.transforms.fitted import FittedTransform
from rm_plugins.transforms.fixed import Clip, Scale, Sigmoid, Tanh
from rm_plugins.transforms.rank_in_group import RankInGroup
from rm_plugins.transforms.rescaled import MinMax, ZScore
from rm_plugins.transforms.running import RunningStatistics, shared_batch
from rm_plugins.transforms.zscore_in_group import ZScoreInGroup

__all__ = [
    "Chain",
    "Clip",
    "FittedTransform",
    "LogSigmoidCentred",
    "MinMax",
    "Par",
    "RankInGroup",
    "RunningStatistics",
    "Scale",
    "Sigmoid",
    "Tanh",
    "ZScore",
    "ZScoreInGroup",
    "rm_register_transforms",
    "shared_batch",
]


@hookimpl
def rm_register_transforms() -> Sequence[type[Transform]]:
    """The built-in transforms."""
    return [Chain, Clip, LogSigmoidCentred, MinMax, Par, RankInGroup, Scale, Sigmoid, Tanh, ZScore, ZScoreInGroup]
