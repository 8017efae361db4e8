"""Rows of datasets: reading them, what judgements they hold, and what is wrong with them before a model is trained on them."""

__all__: list[str] = []
