"""Scores the requests of many clients in batches, independently of HTTP."""

__all__: list[str] = []
