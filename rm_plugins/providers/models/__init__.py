"""Providers that score with a trained model."""

__all__: list[str] = []
