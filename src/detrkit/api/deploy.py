"""``detrkit.deploy``: write the files that serve a bundle somewhere."""

from __future__ import annotations

from detrkit.api.common import Source
from detrkit.deployment.write import Deployment, write_deployment


def deploy(
    bundle: Source, to: str, out: Source, *, image: str = "", cpus: int = 2, replicas: tuple[int, int] = (1, 4)
) -> Deployment:
    """Write complete files that serve a bundle by Docker, Compose, Kubernetes, KServe, Triton, Ray or systemd.

    No torch is needed. Nothing is built, sent or started.

    Args:
        bundle: Folder or zip file that :func:`export` wrote.
        to: ``docker``, ``compose``, ``kubernetes``, ``kserve``, ``triton``, ``ray`` or ``systemd``.
        out: Folder for the files; detrkit replaces there what it wrote itself and nobody changed, and no more.
        image: Name of the container image; the model's name and the bundle's hash if empty.
        cpus: Processors of a replica.
        replicas: Least and greatest number of replicas where there are several.

    Returns:
        ``deployment.passed``, ``checks`` with what could not be checked here, ``files``, and ``next_steps``.

    Raises:
        BundleError: The bundle is damaged, changed, of a newer version, or not to be trusted.
        UsageError: An argument makes no sense, or something lies in the folder that detrkit did not write.
    """
    return write_deployment(bundle, to, out, image=image, cpus=cpus, replicas=replicas)
