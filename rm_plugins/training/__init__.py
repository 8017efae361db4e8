"""Watches the training of a policy by any trainer: journal, history, exploitation, and what rewards have learned."""

__all__: list[str] = []
