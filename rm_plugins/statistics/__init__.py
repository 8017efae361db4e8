"""Figures of scores as pure functions: metrics, intervals, biases, best-of-n, ranks."""

__all__: list[str] = []
