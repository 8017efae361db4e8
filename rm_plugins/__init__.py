"""One reward, the same number everywhere in RLHF with TRL.

Importing this package imports no torch: every name below is loaded when it is first used.
"""

from typing import TYPE_CHECKING

from rm_plugins.lazy_names import lazy_names
from rm_plugins.version import __version__

if TYPE_CHECKING:
    from rm_plugins.component import Aggregate, Transform
    from rm_plugins.errors import RmPluginsError
    from rm_plugins.hooks import hookimpl
    from rm_plugins.provider import Provider
    from rm_plugins.providers.combinators.parts import Combinator
    from rm_plugins.registry import Registry
    from rm_plugins.row_provider import RowProvider
    from rm_plugins.samples import Sample
    from rm_plugins.scores import Scores
    from rm_plugins.spec import load

__all__ = [
    "Aggregate",
    "Combinator",
    "Provider",
    "Registry",
    "RmPluginsError",
    "RowProvider",
    "Sample",
    "Scores",
    "Transform",
    "__version__",
    "hookimpl",
    "load",
]

_HOMES = {
    "Aggregate": "component",
    "Combinator": "providers.combinators.parts",
    "Provider": "provider",
    "Registry": "registry",
    "RmPluginsError": "errors",
    "RowProvider": "row_provider",
    "Sample": "samples",
    "Scores": "scores",
    "Transform": "component",
    "hookimpl": "hooks",
    "load": "spec",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES, __all__)
