"""From samples to token ids, in one way for training and scoring."""

from rm_plugins.rendering.render import Renderer, Rendering

__all__ = ["Renderer", "Rendering"]
