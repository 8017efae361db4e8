"""Providers that ask a judge, a language model."""

__all__: list[str] = []
