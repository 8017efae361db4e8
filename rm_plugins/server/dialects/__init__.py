"""What the server understands: one dialect a file."""

__all__: list[str] = []
