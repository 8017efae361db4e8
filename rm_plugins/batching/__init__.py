"""Scores the requests of many clients in batches. Knows no HTTP."""

__all__: list[str] = []
