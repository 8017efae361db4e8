"""Providers that score by a trained model."""

__all__: list[str] = []
