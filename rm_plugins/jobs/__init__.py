"""Resumable work on rows: scoring, ranking and generation. Nothing here speaks to the user."""

__all__: list[str] = []
