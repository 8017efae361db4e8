"""The plug-in that adds TRL's commands to the ``rm-plugins`` program. Importing it imports no trl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rm_plugins import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def rm_register_commands() -> Sequence[click.Command]:
    """``train``, ``ppo`` and ``demo``."""
    from rm_plugins_trl.demo.command import demo
    from rm_plugins_trl.ppo.command import ppo
    from rm_plugins_trl.reward_training.train import train

    return [train, ppo, demo]
