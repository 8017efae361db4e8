"""A language model that transformers runs in this process, as a judge."""

from __future__ import annotations

from typing import ClassVar

from rm_plugins.generation import Generator, Sampling, load_generator
from rm_plugins.judges.in_process_judge import InProcessJudge


class TransformersJudge(InProcessJudge):
    """A causal language model that transformers runs in this process; answers are greedy.

    The probability of a label is read from the logits of all of its variants in the vocabulary.

    Args:
        model: A model folder or a model id of the hub.
        max_tokens: The longest answer, in tokens, including reasoning.
        label_tokens: The same for a question whose answer is a label. A model that reasons first needs more.
        template_kwargs: Further arguments of the chat template, such as ``{"enable_thinking": false}``.
        options: Keyword arguments of ``from_pretrained``, such as ``dtype``.
        batch_size: The number of questions that are answered at a time; 32 if unset.
        cache: A folder for the replies, which any number of processes may share.

    Raises:
        SpecError: A number is less than 1, or the folder of the cache cannot be made.
    """

    name: ClassVar[str] = "transformers"

    def _load(self, sampling: Sampling) -> Generator:
        return load_generator(self.model, sampling, engine="transformers", options=self.options, batch_size=self.batch_size)
