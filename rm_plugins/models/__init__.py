"""Trained reward models: what lies in a folder, what its outputs mean, and whether it still scores as it was trained to."""

from rm_plugins.models.manifest import MANIFEST_NAME, GoldenScore, Manifest, ScoreStatistics

__all__ = ["MANIFEST_NAME", "GoldenScore", "Manifest", "ScoreStatistics"]
