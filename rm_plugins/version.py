"""The version of this distribution. Imports nothing of this package, so that everything else may."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("rm-plugins")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
