"""The files of checkpoints with shards, and an error of one process that ends all."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from rm_plugins.errors import DataError, RmPluginsError
from rm_plugins_trl.reward_training import failing_together as module
from rm_plugins_trl.reward_training.checkpoints import begin_checkpoint
from rm_plugins_trl.reward_training.failing_together import failing_together
from rm_plugins_trl.reward_training.shard_files import problem_of_shards, state_dict_type


class Evil:
    """What a pickle must not run."""

    def __reduce__(self) -> tuple[object, tuple[object]]:
        return Path.touch, (Path("evil"),)


def shards(folder: Path, size: int = 10) -> Path:
    """A checkpoint with shards of the model and of the optimizer."""
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        (folder / name).mkdir(parents=True)
        places = {MetadataIndex("weight"): _StorageInfo("__0_0.distcp", 4, 6)}
        (folder / name / ".metadata").write_bytes(pickle.dumps(Metadata({}, storage_data=places)))
        (folder / name / "__0_0.distcp").write_bytes(bytes(size))
    return folder


def test_shards_are_checked_by_their_index(tmp_path: Path) -> None:
    whole, short = shards(tmp_path / "whole"), shards(tmp_path / "short", 9)
    assert problem_of_shards(whole) == "" and state_dict_type(whole) == "SHARDED_STATE_DICT"
    assert problem_of_shards(short) == "its shards are incomplete: optimizer_0/__0_0.distcp has 9 of 10 bytes"


def test_an_index_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (shards(tmp_path / "one") / "optimizer_0" / ".metadata").write_bytes(pickle.dumps(Evil()))
    assert problem_of_shards(tmp_path / "one") == "its shards are incomplete: optimizer_0/.metadata cannot be read"
    assert not Path("evil").exists()


def test_a_checkpoint_that_is_written_again_is_incomplete_until_then(tmp_path: Path) -> None:
    """Otherwise one that is killed in between would be a mix of two trainings."""
    folder = shards(tmp_path / "checkpoint-2")
    (folder / "trainer_state.json").write_text("{}")
    begin_checkpoint(folder)
    assert [*folder.iterdir()] == []
    begin_checkpoint(tmp_path / "checkpoint-4")  # which does not exist yet


def test_an_error_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []

    def exchanged(value: object, purpose: str) -> list[object]:
        sent.append(value)
        return [value, (DataError, "the file is missing")]

    monkeypatch.setattr(module, "all_gathered", exchanged)
    with pytest.raises(DataError, match="Process 1: the file is missing"), failing_together():
        pass
    with pytest.raises(ZeroDivisionError), failing_together():
        1 / 0  # noqa: B018
    assert sent[1] == (RmPluginsError, "ZeroDivisionError: division by zero")


def test_the_number_of_embeddings_is_known_where_the_weight_is_elsewhere() -> None:
    from rm_plugins.models.embeddings import embedded_tokens

    class Model:
        embedding = torch.nn.Embedding(12, 3)

        def get_input_embeddings(self) -> torch.nn.Embedding:
            return self.embedding

    Model.embedding.weight = torch.nn.Parameter(torch.empty(0))
    model: Any = Model()
    assert embedded_tokens(model) == 12
