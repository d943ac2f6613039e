"""Types that the verbs share, and the config that arguments resolve to."""

from __future__ import annotations

import os
from collections.abc import Callable

Source = str | os.PathLike[str]
Say = Callable[[str], None]

Progress = Callable[[int, int], None]
"""Called with images done and images in all."""
