"""Resumable work on rows: scoring, ranking and generation. Nothing here prints: callers hand in a `JobProgress`."""

__all__: list[str] = []
