"""The fixtures of the trainers' tests that are used here."""

from tests.trl.conftest import tiny_policy

__all__ = ["tiny_policy"]
