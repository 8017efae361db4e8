"""Providers that make a reward of other rewards."""

__all__: list[str] = []
