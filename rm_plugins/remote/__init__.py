"""How a remote provider's samples reach servers and come back as scores: connections, retries, load, failures."""

from rm_plugins.remote.call import Outcome, ScoringCall
from rm_plugins.remote.fleet import Fleet
from rm_plugins.remote.items import SendableSamples
from rm_plugins.remote.settings import Settings

__all__ = ["Fleet", "Outcome", "ScoringCall", "SendableSamples", "Settings"]
