"""Providers that score by a rule."""

__all__: list[str] = []
