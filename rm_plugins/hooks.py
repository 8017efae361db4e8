"""How a plug-in marks what it registers. Imports nothing of this package, so that everything else may."""

from __future__ import annotations

import pluggy

PROJECT = "rm_plugins"
"""The pluggy project name and the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plug-in as the implementation of a hook."""
