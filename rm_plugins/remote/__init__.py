"""Sends a remote provider's samples to servers and collects their scores: connections, retries, load, failures."""

from rm_plugins.remote.call import Outcome, ScoringCall
from rm_plugins.remote.fleet import Fleet
from rm_plugins.remote.items import SendableSamples
from rm_plugins.remote.settings import Settings

__all__ = ["Fleet", "Outcome", "ScoringCall", "SendableSamples", "Settings"]
