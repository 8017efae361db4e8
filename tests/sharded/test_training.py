"""A reward model trained with sharded weights, which is that of one process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rm_plugins as rm
from tests.sharded.training import LOSSES, rows, train
from tests.trl.conftest import TRL_WARNINGS, run_program

pytestmark = TRL_WARNINGS


def test_fsdp2(tiny_policy: Path, tmp_path: Path) -> None:
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--module", "tests.sharded.training")
    told = run_program(*launcher, tiny_policy, tmp_path, PYTHONPATH=os.pathsep.join(sys.path))
    assert "depend on its batch" not in told and "rows are padded instead" not in told
    logged = json.loads((tmp_path / "logged.json").read_text(encoding="utf-8"))
    for loss in LOSSES:
        alone = tmp_path / f"{loss}-alone"
        expected = train(str(tiny_policy), alone, loss, rows_at_a_time=2, shards=False)
        assert len(expected) == len(logged[loss]) == 3
        for found, wanted in zip(logged[loss], expected, strict=True):
            assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        weights, whole = (load_file(folder / "model.safetensors") for folder in (tmp_path / loss, alone))
        torch.testing.assert_close(weights, whole, rtol=1e-3, atol=1e-3)
        samples = [rm.Sample(row["prompt"], row["chosen"]) for row in rows()]
        scores = [rm.load(folder).score(samples).values for folder in (tmp_path / loss, alone)]
        assert scores[0].ravel().tolist() == pytest.approx(scores[1].ravel().tolist(), abs=1e-3)
        manifest = json.loads((tmp_path / loss / "reward_manifest.json").read_text(encoding="utf-8"))
        assert manifest["training"]["rows_per_step"] == 4
