"""``detrkit serve``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from detrkit.cli.shared import arg, errors, given, opt


def serve(
    bundles: Annotated[
        list[str], arg("BUNDLE...", "What detrkit export wrote, or NAME=BUNDLE; the first answers by default.")
    ],
    host: Annotated[str | None, opt("ADDRESS", "127.0.0.1 if not given; others need a token.")] = None,
    port: Annotated[int | None, opt("N", "8000 if not given; 0 for any free one.", min=0, max=65535)] = None,
    token_file: Annotated[
        Path | None, opt("FILE", "File with the bearer token, instead of DETRKIT_SERVE_TOKEN in the environment.")
    ] = None,
    runtime: Annotated[str | None, opt("NAME", "onnxruntime, openvino, openvino-bf16 or auto.")] = None,
    threads: Annotated[
        int | None, opt("N", "Threads of a model; all that may be used if not given.", min=1)
    ] = None,
    streams: Annotated[int | None, opt("N", "Runs of a model at once; measured if not given.", min=1)] = None,
    batch_size: Annotated[int | None, opt("N", "Images of a batch; measured if not given.", min=1)] = None,
    deadline: Annotated[
        float | None, opt("SECONDS", "Time that a request may wait; 10 if not given.", min=0.01)
    ] = None,
    drain: Annotated[
        float | None, opt("SECONDS", "Time for what was accepted, at the end; 30 if not given.", min=1)
    ] = None,
    max_waiting: Annotated[int | None, opt("N", "Images in the house; 64 if not given.", min=1)] = None,
    max_mb: Annotated[int | None, opt("N", "Megabytes of a request; 16 if not given.", min=1)] = None,
    max_megapixels: Annotated[int | None, opt("N", "Megapixels of a picture; 36 if not given.", min=1)] = None,
    max_images: Annotated[int | None, opt("N", "Pictures of a request; 16 if not given.", min=1)] = None,
    max_mask_megapixels: Annotated[
        int | None, opt("N", "Megapixels of a request's masks together; 500 if not given.", min=1)
    ] = None,
    sample_dir: Annotated[
        Path | None, opt("DIR", "Write a part of the requests there: pictures, and what was found.")
    ] = None,
    sample_rate: Annotated[
        float | None, opt("SHARE", "Share of the pictures; 0.01 if not given.", min=0, max=1)
    ] = None,
    sample_max_mb: Annotated[int | None, opt("N", "Megabytes of the folder; 1024 if not given.", min=1)] = None,
) -> None:
    """Serve bundles over HTTP: JSON, drawn pictures, the Open Inference Protocol, metrics, and a page.

    Listens on this machine only, unless there is a token. A bundle that does not verify is not served. SIGTERM
    ends it once what was accepted is answered; SIGHUP loads the bundles anew.
    """
    with errors():
        from detrkit.api.serve import serve as run

        scaled = {
            "max_bytes": max_mb and max_mb << 20,
            "max_pixels": max_megapixels and max_megapixels * 1_000_000,
            "max_mask_pixels": max_mask_megapixels and max_mask_megapixels * 1_000_000,
            "sample_max_bytes": sample_max_mb and sample_max_mb << 20,
        }
        run(
            bundles,
            say=functools.partial(typer.echo, err=True),
            **given(
                host=host,
                port=port,
                token_file=token_file,
                runtime=runtime,
                threads=threads,
                streams=streams,
                batch_size=batch_size,
                deadline_s=deadline,
                drain_s=drain,
                max_waiting=max_waiting,
                max_images=max_images,
                sample_dir=sample_dir,
                sample_rate=sample_rate,
                **scaled,
            ),
        )
