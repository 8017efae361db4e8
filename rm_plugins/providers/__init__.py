"""The providers that come with rm-plugins, one a file, registered through the same hook as anybody's."""

from __future__ import annotations

from collections.abc import Sequence

from rm_plugins.hookspecs import hookimpl
from rm_plugins.types import Provider

__all__ = ["rm_register_providers"]


@hookimpl
def rm_register_providers() -> Sequence[type[Provider]]:
    """The built-in providers."""
    from rm_plugins.providers.cached import Cached
    from rm_plugins.providers.constant import Constant
    from rm_plugins.providers.ensemble import Ensemble
    from rm_plugins.providers.fallback import Fallback
    from rm_plugins.providers.format import Format
    from rm_plugins.providers.function import FunctionProvider
    from rm_plugins.providers.gate import Gate
    from rm_plugins.providers.json_schema import JsonSchema
    from rm_plugins.providers.length_window import LengthWindow
    from rm_plugins.providers.lora_ensemble import LoraEnsemble
    from rm_plugins.providers.math_verify import MathVerify
    from rm_plugins.providers.mc_dropout import McDropout
    from rm_plugins.providers.phrases import Phrases
    from rm_plugins.providers.product import Product
    from rm_plugins.providers.remote import Remote
    from rm_plugins.providers.repetition import Repetition
    from rm_plugins.providers.route import Route
    from rm_plugins.providers.sequence_classifier import SequenceClassifier
    from rm_plugins.providers.sum import Sum
    from rm_plugins.providers.threshold import Threshold

    return [
        Cached,
        Constant,
        Ensemble,
        Fallback,
        Format,
        FunctionProvider,
        Gate,
        JsonSchema,
        LengthWindow,
        LoraEnsemble,
        MathVerify,
        McDropout,
        Phrases,
        Product,
        Remote,
        Repetition,
        Route,
        SequenceClassifier,
        Sum,
        Threshold,
    ]
