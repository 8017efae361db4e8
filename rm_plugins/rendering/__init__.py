"""Converts samples to token ids, in the same way for training and scoring."""

from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Rendering

__all__ = ["Renderer", "Rendering"]
