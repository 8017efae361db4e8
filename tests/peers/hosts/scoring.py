"""A sequence classifier as its owner would write it into a server of their own: transformers, and none of our code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

FAILS = "the model fails at this text"
"""A text that raises an error."""


class Classifier:
    """A model with one output, which reads texts and pairs of texts as its tokenizer encodes them.

    Args:
        folder: The model's.
    """

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def scores(self, texts: Sequence[str], others: Sequence[str] | None = None) -> list[float]:
        """The logit of each text, or of each pair; one of them that fails takes all others with it.

        Raises:
            ValueError: A text is `FAILS`.
        """
        if FAILS in texts or FAILS in (others or ()):
            raise ValueError("this text cannot be scored")
        rows = self.tokenizer(list(texts), None if others is None else list(others), padding=True, return_tensors="pt")
        with torch.inference_mode():
            values: list[float] = self.model(**rows).logits[:, 0].double().tolist()
        return values
