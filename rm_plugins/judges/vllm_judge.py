"""A language model that vLLM runs in this process, as a judge."""

from __future__ import annotations

from typing import ClassVar

from rm_plugins.generation import Generator, Sampling, load_generator
from rm_plugins.judges.in_process_judge import InProcessJudge


class VLLMJudge(InProcessJudge):
    """A causal language model that vLLM runs on the GPUs of this process; answers are greedy.

    Probabilities of labels are known as far as they are among the 20 most likely tokens.

    Args:
        model: A model folder or a model id of the hub.
        max_tokens: The longest answer, in tokens, including reasoning.
        label_tokens: The same for a question whose answer is a label. A model that reasons first needs more.
        template_kwargs: Further arguments of the chat template, such as ``{"enable_thinking": false}``.
        options: Keyword arguments of ``vllm.LLM``, such as ``gpu_memory_utilization``.
        batch_size: Has no effect: vLLM forms its own batches.
        cache: A folder for the replies, which any number of processes may share.

    Raises:
        SpecError: A number is less than 1, or the folder of the cache cannot be made.
    """

    name: ClassVar[str] = "vllm"

    def _load(self, sampling: Sampling) -> Generator:
        return load_generator(self.model, sampling, engine="vllm", options=self.options, batch_size=self.batch_size)
