"""What a checkpoint keeps of where PPO is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trl.conftest import newest_trl


@newest_trl
@pytest.mark.parametrize("folder", ["checkpoint-1", "."])
def test_a_process_may_save_before_another_has_made_the_folder(folder: str, tmp_path: Path) -> None:
    from rm_plugins_trl.ppo.kl import AdaptiveKl
    from rm_plugins_trl.ppo.progress import Progress
    from rm_plugins_trl.ppo.rewards import RunningScale

    def progress(weight: float) -> Progress:
        return Progress(AdaptiveKl(weight, None, 10_000), RunningScale(), {"num_ppo_epochs": 4})

    progress(0.3).save(tmp_path / folder, 1)
    again = progress(0.05)
    assert not again.load(tmp_path / folder, 1, torch.device("cpu"))
    assert again.kl.weight == 0.3
