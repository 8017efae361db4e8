"""Completions that a policy writes for prompts, to be scored and ranked."""

from rm_plugins.generation.generator import ENGINES, Completion, Generator, Sampling, default_engine, load_generator
from rm_plugins.generation.prompts import PolicyPrompts

__all__ = ["ENGINES", "Completion", "Generator", "PolicyPrompts", "Sampling", "default_engine", "load_generator"]
