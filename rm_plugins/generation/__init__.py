"""Completions that a policy writes for prompts, to be scored and ranked."""

from rm_plugins.generation.engines import ENGINES, default_engine, load_generator
from rm_plugins.generation.generator import Completion, Generator, Sampling
from rm_plugins.generation.prompts import PolicyPrompts

__all__ = ["ENGINES", "Completion", "Generator", "PolicyPrompts", "Sampling", "default_engine", "load_generator"]
