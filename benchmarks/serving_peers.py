"""Servers that one would write in an afternoon, for :mod:`benchmarks.serving`: run as a script of their own.

They need onnxruntime, pillow, fastapi and uvicorn, or litserve, and nothing of detrkit. What they are told is in
the environment: ``PEER`` (graph, sizes, classes) as JSON.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from typing import Any

import fastapi
import numpy as np
import onnxruntime
import uvicorn
from PIL import Image

try:
    import litserve
except ImportError:
    litserve = None

SETTINGS = json.loads(os.environ.get("PEER", "{}"))


def read(content: bytes) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode and resize as the model was trained; Pillow's resize, as most would."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    width, height = image.size
    scale = SETTINGS["eval_size"] / min(width, height)
    if SETTINGS["max_size"]:
        scale = min(scale, SETTINGS["max_size"] / max(width, height))
    resized = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    return np.array(resized), (height, width)


def run(session: Any, images: list[tuple[np.ndarray, tuple[int, int]]]) -> list[dict[str, Any]]:
    """Run one padded batch, and return what is found from a score of 0.5 on."""
    sizes = np.array([pixels.shape[:2] for pixels, _ in images], dtype=np.int64)
    height, width = (max(64, int(side)) for side in sizes.max(axis=0))
    batch = np.zeros((len(images), height, width, 3), dtype=np.uint8)
    for row, (pixels, _) in enumerate(images):
        batch[row, : pixels.shape[0], : pixels.shape[1]] = pixels
    originals = np.array([size for _, size in images], dtype=np.int64)
    inputs = {"images": batch, "sizes": sizes, "original_sizes": originals}
    names = [one.name for one in session.get_inputs()]
    found = []
    for scores, labels, boxes in zip(*session.run(None, {name: inputs[name] for name in names}), strict=True):
        keep = scores >= 0.5
        found.append(
            {
                "boxes": boxes[keep].tolist(),
                "scores": scores[keep].tolist(),
                "classes": [SETTINGS["classes"][number] for number in labels[keep]],
            }
        )
    return found


def open_session() -> Any:
    return onnxruntime.InferenceSession(SETTINGS["graph"], providers=["CPUExecutionProvider"])


def serve_fastapi(port: int) -> None:
    """The plain server: a function that FastAPI runs in its threads, and a session that they share."""
    app, session = fastapi.FastAPI(), open_session()

    async def body_of(request: fastapi.Request) -> bytes:
        return await request.body()

    @app.post("/predict")
    def predict(body: bytes = fastapi.Depends(body_of)) -> dict[str, Any]:
        return run(session, [read(body)])[0]

    uvicorn.run(app, port=port, log_level="error")


class Api(litserve.LitAPI if litserve else object):
    """LitServe's way; its processes find it by its name."""

    def setup(self, device):
        self.session = open_session()

    def decode_request(self, request):
        return read(base64.b64decode(request["image"]))

    def batch(self, inputs):
        return inputs

    def unbatch(self, output):
        return output

    def predict(self, images):
        return run(self.session, images) if isinstance(images, list) else run(self.session, [images])[0]

    def encode_response(self, output):
        return output


def serve_litserve(port: int, batch: int, workers: int) -> None:
    """LitServe with its batching, or with several workers."""
    api = Api(max_batch_size=batch, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=60)
    server.run(port=port, generate_client_file=False, log_level="error")


if __name__ == "__main__":
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == "fastapi":
        serve_fastapi(port)
    else:
        serve_litserve(port, int(sys.argv[3]), int(sys.argv[4]))
