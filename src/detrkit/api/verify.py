"""``detrkit.verify``: prove that a bundle is whole and finds here what it found where it was written."""

from __future__ import annotations

from detrkit.api.common import Source
from detrkit.runtimes.verify import Verification, verify_bundle


def verify(bundle: Source, *, runtime: str = "", threads: int | None = None) -> Verification:
    """Check every file of a bundle, and detect in its golden pictures again.

    Args:
        bundle: Folder or zip file that :func:`export` wrote.
        runtime: ``onnxruntime``, ``openvino``, or ``auto`` for the faster; if empty, what usually runs it.
        threads: Threads; as many as this process may use if not given.

    Returns:
        ``verification.passed``, and what differs in which picture.

    Raises:
        BundleError: The bundle is damaged, changed, of a newer version, or not to be trusted.
        UsageError: There is no such runtime, it is not installed, or the bundle gives raw outputs.
    """
    return verify_bundle(bundle, runtime, threads)
