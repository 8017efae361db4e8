"""Which of TRL's tests concern what we replace."""

from importlib.util import find_spec
from pathlib import Path


def _has_ppo() -> bool:
    installed = find_spec("trl")
    return installed is not None and (Path(str(installed.origin)).parent / "experimental" / "ppo").is_dir()


HAS_PPO = _has_ppo()

SELECTED = {
    "test_reward_trainer.py": "",
    **({"experimental/test_ppo_trainer.py": "TestPPOTrainer"} if HAS_PPO else {}),
    "test_grpo_trainer.py": "reward",
    "test_rloo_trainer.py": "reward",
}
"""What the names of the tests have in common, by file below ``tests/``."""

NEEDS_THE_HUB = {"test_train_with_environment_owned_reward": "has token ids of the hub's tokenizer in it"}
"""Why a test cannot run on stand-ins, by name."""
