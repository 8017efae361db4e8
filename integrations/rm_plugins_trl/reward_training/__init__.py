"""RewardTrainer, and what only it uses."""

__all__: list[str] = []
