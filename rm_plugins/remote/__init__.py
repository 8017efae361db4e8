"""Sends samples and questions to servers and collects the scores and replies: connections, retries, load, failures."""

from rm_plugins.remote.call import Outcome, ScoringCall
from rm_plugins.remote.fleet import Fleet
from rm_plugins.remote.items import SendableSamples
from rm_plugins.remote.sendable import SendableQuestions
from rm_plugins.remote.server_calls import ServerCalls
from rm_plugins.remote.settings import Settings
from rm_plugins.remote.spec_settings import checked_settings, checked_urls

__all__ = [
    "Fleet",
    "Outcome",
    "ScoringCall",
    "SendableQuestions",
    "SendableSamples",
    "ServerCalls",
    "Settings",
    "checked_settings",
    "checked_urls",
]
