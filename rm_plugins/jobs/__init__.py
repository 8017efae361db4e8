"""Resumable work on rows: scoring, ranking and generation. Jobs do not print: callers pass a `JobProgress`."""

__all__: list[str] = []
