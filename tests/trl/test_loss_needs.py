"""A loss of a plug-in that needs a column which no built-in loss knows."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset

from rm_plugins.errors import DataError, SpecError
from rm_plugins.losses import Loss, Need, RewardBatch
from rm_plugins.losses.loss import own_needs
from rm_plugins_trl import RewardConfig, RewardTrainer
from tests.trl.conftest import TRL_WARNINGS

pytestmark = TRL_WARNINGS

PLUGIN = Path(__file__).parents[1] / "plugin" / "rm_plugins_example.py"
PAIRS: list[dict[str, Any]] = [
    {"prompt": "Name a colour.", "chosen": f" It is blue{'.' * n}", "rejected": " two", "confidence": n / 8} for n in range(8)
]


def outside_loss() -> Any:
    """The loss of the example plug-in."""
    spec = importlib.util.spec_from_file_location("rm_plugins_example", PLUGIN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Confident()


def trainer(model: str, folder: Path, loss: Any, rows: Any, **settings: Any) -> RewardTrainer:
    small: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "max_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    return RewardTrainer(model, RewardConfig(str(folder), loss=loss, **{**small, **settings}), train_dataset=rows)


def test_its_column_reaches_the_loss(tiny_decoder: Any, tmp_path: Path) -> None:
    loss = outside_loss()
    seen: list[RewardBatch] = []
    original = type(loss).__call__

    class Kept(type(loss)):  # type: ignore[misc]
        def __call__(self, batch: RewardBatch) -> Any:
            seen.append(batch)
            return original(self, batch)

    training = trainer(str(tiny_decoder()), tmp_path, Kept(), Dataset.from_list(PAIRS))
    training.train()
    (batch,) = seen
    confidence = batch.extras["confidence"]
    assert sorted(confidence.tolist()) == [row["confidence"] for row in PAIRS]
    # Each stands at its own pair: the completion is the longer, the surer the annotator was.
    order = batch.lengths[batch.pairs[:, 0]].argsort(stable=True)
    assert confidence[order].tolist() == sorted(confidence.tolist())
    gap = (batch.winners - batch.losers)[:, 0]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(gap, confidence)
    assert training.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("streamed", [False, True])
def test_data_without_the_column_is_refused(streamed: bool, tiny_decoder: Any, tmp_path: Path) -> None:
    rows = [{name: value for name, value in row.items() if name != "confidence"} for row in PAIRS]
    data = IterableDataset.from_generator(lambda: iter(rows)) if streamed else Dataset.from_list(rows)
    with pytest.raises(DataError, match=r"needs confidence, .* has (none|no such values)\. It is how sure"):
        trainer(str(tiny_decoder()), tmp_path, outside_loss(), data).train()


def test_a_value_that_is_no_number_is_refused(tiny_decoder: Any, tmp_path: Path) -> None:
    rows = [{**row, "confidence": "high"} for row in PAIRS]
    with pytest.raises(DataError, match=r"Row 0 \(counted from 0\) of the train dataset: 'confidence' is 'high'"):
        trainer(str(tiny_decoder()), tmp_path, outside_loss(), Dataset.from_list(rows))


@pytest.mark.parametrize("need", ["confidence", Need("rewards"), Need("margins", each="pair")])
def test_a_name_that_is_unknown_or_taken_is_refused(need: Any) -> None:
    class Wrong(Loss):
        name = "wrong"
        needs = frozenset({need})

        def __call__(self, batch: RewardBatch) -> Any:
            return batch.rewards.sum()

    with pytest.raises(SpecError, match=r"unknown|taken"):
        own_needs(Wrong())


def test_two_processes_share_it() -> None:
    def share(pairs: int, confidence: list[float] | None) -> RewardBatch:
        places = torch.arange(2 * pairs)
        extras = {} if confidence is None else {"confidence": torch.tensor(confidence)}
        return RewardBatch(torch.zeros(2 * pairs, 1), places.reshape(-1, 2), places // 2, places, extras=extras)

    need = Need("confidence", each="pair", missing=1.0)
    device = torch.device("cpu")
    gathered = need.gather([share(2, [0.25, 0.5]), share(1, None)], device)
    assert gathered is not None and gathered.tolist() == [0.25, 0.5, 1.0]
    assert need.gather([share(1, None), share(1, None)], device) is None
