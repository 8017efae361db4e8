"""Trained reward models: loading a model folder, the meaning of its outputs, and verifying its recorded scores."""

from rm_plugins.models.manifest import MANIFEST_NAME, GoldenScore, Manifest, ScoreStatistics

__all__ = ["MANIFEST_NAME", "GoldenScore", "Manifest", "ScoreStatistics"]
