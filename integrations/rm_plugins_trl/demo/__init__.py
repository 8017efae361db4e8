"""The whole road on a desk: a world with a known reward, a reward model of it, and a policy trained on that model."""

__all__: list[str] = []
