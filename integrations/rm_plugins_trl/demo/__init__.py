"""A complete example on a laptop: data with a known reward, a reward model, and a policy trained against it."""

__all__: list[str] = []
