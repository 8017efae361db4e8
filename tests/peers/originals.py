"""What a model says by transformers alone, none of our code: the numbers that a shape's original gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class Original:
    """A sequence classifier, one row after another, so that no padding takes part.

    Args:
        folder: The model's.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def texts(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> NDArray[np.float64]:
        """The logits of texts as they are, read at the last token: as vLLM, TEI and OpenRLHF's server do."""
        return self._logits([self.tokenizer(text, add_special_tokens=add_special_tokens) for text in texts])

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """The logits of pairs, with the separators and token types of the tokenizer: as vLLM, TEI and Infinity do."""
        return self._logits([self.tokenizer(one, other) for one, other in pairs])

    def _logits(self, rows: Sequence[dict[str, list[int]]]) -> NDArray[np.float64]:
        # No padding id: transformers then reads the last token, whatever it is.
        self.model.config.pad_token_id = None
        with torch.inference_mode():
            outputs = [self.model(**{key: torch.tensor([value]) for key, value in row.items()}).logits[0] for row in rows]
        return torch.stack(outputs).double().numpy()[:, 0]


def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What most originals answer with in place of a logit."""
    return 1 / (1 + np.exp(-values))
