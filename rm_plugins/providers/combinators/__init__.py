"""Providers that combine other rewards."""

__all__: list[str] = []
