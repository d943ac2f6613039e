"""The old name of :mod:`detrkit.data.formats`, to go with the next release."""

from detrkit.data.formats import *  # noqa: F403
