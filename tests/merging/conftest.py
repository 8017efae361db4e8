"""Models to be averaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2ForSequenceClassification

from tests.conftest import CORPUS, MakeFolder

Tensors: TypeAlias = dict[str, torch.Tensor]


def rewrite(folder: Path, change: Callable[[Tensors], Any]) -> Path:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def trained(folder: Path, seed: int) -> Path:
    """Train a classifier a little, as its own copy of where it started from."""
    model = Qwen2ForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(CORPUS, return_tensors="pt", padding=True)
    torch.manual_seed(seed)
    wanted = torch.randn(len(CORPUS), model.config.num_labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        (model(**ids).logits - wanted).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def members(tiny_decoder: MakeFolder, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three classifiers that were trained from one start."""
    start, folder = tiny_decoder(), tmp_path_factory.mktemp("members")
    return [trained(shutil.copytree(start, folder / str(seed)), seed) for seed in range(3)]


def names(*folders: Path) -> list[str]:
    return [str(folder) for folder in folders]
