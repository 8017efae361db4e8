"""What is measured on a GPU, in the order of its worth, and how long each part may take. Needs nothing but Python."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALL_DEVICES", "MINUTES", "PARTS", "START_SECONDS", "Part", "chosen"]

MINUTES = 8.0
START_SECONDS = 25.0
"""What starting the process that measures takes: importing torch and the libraries, making a tokenizer."""


ALL_DEVICES = "RM_PLUGINS_ALL_DEVICES"
"""The environment variable that keeps the devices that were visible before all but the first were hidden."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is measured in one go.

    Args:
        name: What it is called on the command line, in rows and in tables.
        function: ``module:function`` under ``tests.benchmarks.gpu.parts``.
        seconds: How long it should take on an H200; it measures less where less time is left.
        title: What it measures, as a heading.
        arguments: Handed to the function.
    """

    name: str
    function: str
    seconds: float
    title: str
    arguments: tuple[str, ...] = ()

    @property
    def limit(self) -> float:
        """The seconds after which it is stopped, though others would have time left."""
        return 2 * self.seconds + 15


PARTS = (
    Part("peak", "peak:measure", 8, "What the device does at best"),
    Part("scoring-0.5b", "scoring:measure", 40, "Scoring, Qwen2.5-0.5B", ("QWEN_HALF",)),
    Part("scoring-7b", "scoring:measure", 75, "Scoring, Qwen2.5-7B", ("QWEN_SEVEN",)),
    Part("tests", "checks:measure", 35, "Tests that need a GPU"),
    Part("training-0.5b", "training:measure", 40, "Training, Qwen2.5-0.5B, all weights", ("half",)),
    Part("long-rows", "long_rows:measure", 25, "Training, one long row, Qwen2.5-0.5B"),
    Part("memory", "memory:measure", 15, "Out of memory"),
    Part("costs", "costs:measure", 20, "What batches cost"),
    Part("serving", "serving:measure", 35, "Serving, Qwen2.5-0.5B"),
    Part("training-7b-lora", "training:measure", 35, "Training, Qwen2.5-7B, LoRA", ("lora",)),
    Part("sharded", "sharded_steps:measure", 12, "Sharded weights on one device, Qwen2.5-0.5B"),
    Part("quantized", "quantized:measure", 20, "Quantized weights, Qwen2.5-0.5B"),
    Part("profile", "profile:measure", 10, "Where the time goes"),
    Part("scoring-modernbert", "scoring:measure", 20, "Scoring, ModernBERT-large", ("MODERNBERT",)),
    Part("training-7b", "training:measure", 35, "Training, Qwen2.5-7B, all weights", ("full",)),
    Part("compile", "compiled:measure", 25, "Scoring through torch.compile, Qwen2.5-0.5B"),
)


def chosen(names: list[str] | None) -> list[Part]:
    """The parts of these names in the order of the plan; all of them for None."""
    return [part for part in PARTS if names is None or part.name in names]
