"""From samples to numbers: render, tokenize, plan micro-batches, run, scatter.

The plan is pure and torch-free; the engine runs it; the manifest records how a trained model's samples become token ids.
"""

from rm_plugins.scoring.manifest import MANIFEST_NAME, GoldenScore, Manifest, ScoreStatistics
from rm_plugins.scoring.plan import Plan, plan_batches
from rm_plugins.scoring.render import Renderer, Rendering

__all__ = [
    "MANIFEST_NAME",
    "GoldenScore",
    "Manifest",
    "Plan",
    "Renderer",
    "Rendering",
    "ScoreStatistics",
    "plan_batches",
]
