"""The providers that come with rm-plugins, one a file, registered through the same hook as anybody's."""

from __future__ import annotations

from collections.abc import Sequence

from rm_plugins.hookspecs import hookimpl
from rm_plugins.types import Provider

__all__ = ["rm_register_providers"]


@hookimpl
def rm_register_providers() -> Sequence[type[Provider]]:
    """The built-in providers."""
    from rm_plugins.providers.ensemble import Ensemble
    from rm_plugins.providers.function import FunctionProvider
    from rm_plugins.providers.sequence_classifier import SequenceClassifier

    return [Ensemble, FunctionProvider, SequenceClassifier]
