"""For the tests of a plug-in: contract checks of what it registers, and a provider with given scores."""

from rm_plugins.testing.comparers import check_comparer
from rm_plugins.testing.fixed_provider import FixedProvider
from rm_plugins.testing.judges import check_judge
from rm_plugins.testing.losses import check_loss
from rm_plugins.testing.protocols import check_protocol
from rm_plugins.testing.providers import check_provider
from rm_plugins.testing.suites import check_suite

__all__ = ["FixedProvider", "check_comparer", "check_judge", "check_loss", "check_protocol", "check_provider", "check_suite"]
