"""A reward on its way from the driver to the actors of a cluster: the same reward on every node, or an error."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rm_plugins as rm
from rm_plugins.errors import ModelError, ProcessError, RmPluginsError, UnsupportedError
from rm_plugins.groups import RowGroups
from rm_plugins.identity import fingerprint
from rm_plugins.providers.combinators.parts import groupings, learns_while_scoring
from rm_plugins.version import __version__
from rm_plugins_ray.shipped_spec import ShippedSpec


@dataclass(frozen=True, slots=True)
class CarriedReward:
    """A reward as bytes, with what an actor compares before it scores.

    Args:
        label: The reward's name in messages.
        pickled: The reward; weights stay where they are, and each actor reads them by their path.
        fingerprint: `rm_plugins.identity.fingerprint` of the driver's reward.
        groups: How it groups samples that it compares.
        has_models: Whether it holds a model, which wants an accelerator.
        paths: The files and folders that its spec names, by their place in the spec.
        version: The version of rm-plugins on the driver.
    """

    label: str
    pickled: bytes
    fingerprint: str
    groups: RowGroups
    has_models: bool
    paths: Mapping[str, str] = field(default_factory=dict)
    version: str = __version__

    @classmethod
    def load(cls, spec: str | Path | Mapping[str, Any] | rm.Provider | Callable[..., Any]) -> CarriedReward:
        """The driver's reward, ready to be carried.

        Args:
            spec: As for `rm_plugins.load`.

        Raises:
            RmPluginsError: It cannot be loaded here.
            UnsupportedError: It learns while it scores, so that every actor would score with another reward; or it is only in the
                memory of this process.
        """
        from ray import cloudpickle

        provider = rm.load(spec)
        if learning := [path or "the reward itself" for path, part in provider.walk() if learns_while_scoring(part)]:
            raise UnsupportedError(
                f"{provider.called} learns while it scores ({', '.join(learning)}), so each actor would learn from its own rows and score "
                "differently. Use fixed statistics, which `rm-plugins calibrate` finds, or score without --engine."
            )
        try:
            pickled = cloudpickle.dumps(provider)
        except RmPluginsError:
            raise
        except Exception as error:  # anything that an author's class holds, such as a lock or an open file
            raise UnsupportedError(
                f"{provider.called} cannot be sent to the cluster: {error}. Load it from a spec whose files are on every node."
            ) from error
        return cls(
            provider.label,
            pickled,
            fingerprint(provider),
            RowGroups(groupings(provider)),
            any(part.models for _, part in provider.walk()),
            ShippedSpec.read(spec).paths if isinstance(spec, (str, Path, Mapping)) else {},
        )

    def unpacked(self) -> rm.Provider:
        """The reward in this process.

        Raises:
            ModelError: A file that it names is missing on this node, or is another one than the driver's.
            ProcessError: This node has another version of rm-plugins.
        """
        from ray import cloudpickle

        here = platform.node()
        if self.version != __version__:
            raise ProcessError(_other_versions(here, __version__, self.version))
        ShippedSpec({}, self.paths).check_here()
        try:
            provider: rm.Provider = cloudpickle.loads(self.pickled)
            mine = fingerprint(provider)
        except Exception as error:  # a missing folder, a module that only the driver has, a package that is older
            raise ModelError(
                f"The reward {self.label!r} cannot be loaded on the node {here}: {error} Every node needs the "
                "files and modules that its spec names. Put files on shared storage, and ship modules with Ray's runtime_env."
            ) from error
        if mine != self.fingerprint:
            raise ModelError(
                f"The reward {self.label!r} on the node {here} is not the one on the driver: their fingerprints are {mine[:12]} and "
                f"{self.fingerprint[:12]}. Files that the spec names, or the code of its functions, differ. Copy the driver's there."
            )
        return provider


def _other_versions(node: str, there: str, here: str) -> str:
    return f"The node {node} has rm-plugins {there}, and the driver has {here}. Install the same version on every node of the cluster."


def check_versions(found: Iterable[tuple[str, str, str]]) -> None:
    """Refuse nodes that cannot run what the driver sends.

    Args:
        found: Of each node its name, its version of rm-plugins, or why there is none, and its version of Python.

    Raises:
        ProcessError: A node has another version of rm-plugins or of Python, or lacks rm-plugins.
    """
    mine = ".".join(platform.python_version_tuple()[:2])
    for node, version, python in found:
        if not version[:1].isdigit():
            raise ProcessError(
                f"The node {node} cannot import rm_plugins_ray: {version}. Install rm-plugins[ray] {__version__} on every node of the "
                "cluster."
            )
        if version != __version__:
            raise ProcessError(_other_versions(node, version, __version__))
        if python != mine:
            raise ProcessError(
                f"The node {node} has Python {python}, and the driver has {mine}. Use one version on the whole cluster."
            )
