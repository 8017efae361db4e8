"""Says clearly what is wrong on another node: rm-plugins is missing there, or is another version, or could not load a reward."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable


def node_check(version: str) -> Callable[[], None]:
    """A function that checks, on the node that calls it, that Python and the package are there in the versions of this process.

    It raises RuntimeError. It is local, so that Ray sends its code instead of importing it from the package that may be missing.

    Args:
        version: The version of rm-plugins in the process that started what runs on the node.
    """
    started_with = ".".join(platform.python_version_tuple()[:2])

    def check() -> None:
        import platform
        import socket

        here = f"The node {socket.gethostname()}"
        python = ".".join(platform.python_version_tuple()[:2])
        if python != started_with:
            raise RuntimeError(
                f"{here} has Python {python}, but this job was started with {started_with}. Use one version on the whole cluster."
            )
        needs = f"{here} needs rm-plugins {version}, which this job was started with"
        remedy = f"Install it on every node, or name it in the runtime environment: pip: ['rm-plugins[ray]=={version}']."
        try:
            from rm_plugins.version import __version__ as installed
            from rm_plugins_ray.shipped_spec import ShippedSpec  # noqa: F401 - what every node needs
        except ImportError as error:
            raise RuntimeError(f"{needs}, but it cannot be imported there ({error}). {remedy}") from error
        if installed != version:
            raise RuntimeError(f"{needs}, but {installed} is installed there. {remedy}")

    return check


def reason_of(error: BaseException) -> str:
    """The message of the exception that Ray's error quotes with its traceback.

    >>> reason_of(RuntimeError("The actor died:\\nTraceback ...\\n  File x, line 1\\nrm_plugins.errors.ModelError: no folder /m."))
    'no folder /m.'
    """
    text = str(error).strip()
    raised = list(re.finditer(r"^[\w.]*(?:Error|Exception|Exit|Missing): ", text, re.MULTILINE))
    reason = text[raised[-1].end() :] if raised else text
    return " ".join(reason.split()) or type(error).__name__
