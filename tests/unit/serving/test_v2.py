"""The Open Inference Protocol: what Triton's and KServe's own clients get is what predict finds."""

from __future__ import annotations

import base64
import json
import os
import struct
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest

from detrkit import runtime
from tests.support.bundles import noise
from tests.unit.serving.conftest import TOKEN, encoded, listening

IMAGE = noise((40, 60), 1)


@pytest.fixture
def url(served) -> Iterator[str]:
    with listening(served(token=TOKEN).service) as address:
        yield address


def outputs_of(found):
    return {"scores": found.confidence, "labels": found.class_id, "boxes": found.xyxy}


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tritons_client_gets_what_predict_finds(url, bundle, binary_in, binary_out):
    http = pytest.importorskip("tritonclient.http")
    expected = runtime.load(bundle).predict(IMAGE, 0.3)
    assert len(expected) == 1
    headers = {"Authorization": f"Bearer {TOKEN}"}
    pixels = http.InferInput("image", [1, *IMAGE.shape], "UINT8")
    pixels.set_data_from_numpy(IMAGE[None], binary_data=binary_in)
    file = http.InferInput("image_bytes", [1], "BYTES")
    content = encoded(IMAGE)
    content = content if binary_in else base64.b64encode(content)
    file.set_data_from_numpy(np.array([content], dtype=object), binary_data=binary_in)
    wanted = None
    if binary_out is not None:
        wanted = [
            http.InferRequestedOutput(name, binary_data=binary_out) for name in ("boxes", "scores", "labels")
        ]
    with http.InferenceServerClient(url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("mean", headers=headers)
        assert client.get_server_metadata(headers)["extensions"] == ["binary_tensor_data"]
        [version] = client.get_model_metadata("mean", headers=headers)["versions"]
        for sent in (pixels, file):
            for options in ({}, {"model_version": version}):
                found = client.infer(
                    "mean", [sent], outputs=wanted, headers=headers, parameters={"threshold": 0.3}, **options
                )
                for name, value in outputs_of(expected).items():
                    assert found.as_numpy(name).dtype == value.dtype
                    assert np.array_equal(found.as_numpy(name), value)
                assert found.get_response()["model_version"] == version
        with pytest.raises(http._utils.InferenceServerException, match="no model"):
            client.infer("other", [pixels], headers=headers)


KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

async def main(url, token, binary):
    image = np.load(sys.stdin.buffer)[None]
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    sent = InferInput("image", list(image.shape), "UINT8")
    sent.set_data_from_numpy(image, binary_data=binary)
    request = InferRequest("mean", [sent], parameters={"threshold": 0.0})
    headers = {"Authorization": f"Bearer {token}"}
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "mean", headers=headers)
    found = await client.infer(url, request, model_name="mean", headers=headers)
    print(json.dumps({one.name: one.as_numpy().tolist() for one in found.outputs}))

asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] == "binary"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["binary", "json"])
def test_kserves_client_gets_what_predict_finds(url, bundle, way, tmp_path):
    python = os.environ.get("DETRKIT_KSERVE_PYTHON")
    if python is None:
        pytest.skip("$DETRKIT_KSERVE_PYTHON names no Python with kserve")
    np.save(tmp_path / "image.npy", IMAGE)
    with (tmp_path / "image.npy").open("rb") as file:
        arguments = [python, "-c", KSERVE, f"http://{url}", TOKEN, way]
        done = subprocess.run(arguments, stdin=file, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = outputs_of(runtime.load(bundle).predict(IMAGE, 0))
    assert json.loads(done.stdout) == {name: value.tolist() for name, value in expected.items()}


def request(**changes):
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [0] * 12}
    return {"inputs": [{**tensor, **changes}]}


def test_numbers_may_be_nested_and_shapes_without_a_batch(client):
    nested = np.zeros((2, 2, 3), int).tolist()
    answers = [
        client.post("/v2/models/mean/infer", json=request(**changes)).json()["outputs"]
        for changes in ({}, {"data": [nested]}, {"data": nested, "shape": [2, 2, 3]})
    ]
    assert answers[0] == answers[1] == answers[2]


WRONG = {
    "no JSON": b"{",
    "another JSON": b"[1]",
    "deep": b'{"inputs":' + b"[" * 100_000,
    "no input": {"inputs": []},
    "two": {"inputs": request()["inputs"] * 2},
    "another input": request(name="pixels"),
    "floats": request(data=[0.5] * 12),
    "float type": request(datatype="FP32"),
    "too great": request(data=[256] * 12),
    "negative": request(data=[-1] * 12),
    "huge": request(data=[10**400] * 12),
    "true": request(data=[True] * 12),
    "texts": request(data=["a"] * 12),
    "ragged": request(data=[[1, 2], [3]]),
    "none": request(data=[]),
    "too few": request(data=[0] * 11),
    "two pictures": request(shape=[2, 2, 1, 3]),
    "negative shape": request(shape=[1, -2, -2, 3]),
    "empty shape": request(shape=[]),
    "zero": request(shape=[1, 0, 2, 3], data=[0]),
    "four channels": request(shape=[1, 1, 3, 4]),
    "huge shape": request(shape=[1, 1 << 40, 1 << 40, 3]),
    "shape overflows": request(shape=[1, 1 << 62, 4, 3]),
    "beyond int64": request(shape=[1, 1 << 80, 4, 3]),
    "both": request(parameters={"binary_data_size": 12}),
    "neither": request(data=None),
    "size of nothing": request(data=None, parameters={"binary_data_size": 12}),
    "size is text": request(data=None, parameters={"binary_data_size": "12"}),
    "base64": request(name="image_bytes", datatype="BYTES", shape=[1], data=["!"]),
    "two files": request(name="image_bytes", datatype="BYTES", shape=[2], data=["AA==", "AA=="]),
    "no picture": request(name="image_bytes", datatype="BYTES", shape=[1], data=["AAAA"]),
    "threshold": {**request(), "parameters": {"threshold": 2}},
    "threshold is text": {**request(), "parameters": {"threshold": "0"}},
    "threshold is NaN": b'{"inputs":[],"parameters":{"threshold":NaN}}',
    "another output": {**request(), "outputs": [{"name": "masks"}]},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_request_of_the_protocol_is_refused(client, name):
    body = WRONG[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post("/v2/models/mean/infer", content=content)
    assert response.status_code in (400, 413), response.text
    assert response.json().keys() == {"error"}
    assert "Traceback" not in response.text


def binary(head, tail, length=None):
    head = json.dumps(head).encode()
    return head + tail, {"Inference-Header-Content-Length": str(len(head)) if length is None else length}


PIXELS = request(data=None, parameters={"binary_data_size": 12})
FILE = request(name="image_bytes", datatype="BYTES", shape=[1], data=None, parameters={"binary_data_size": 8})


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        binary(PIXELS, b"x" * 11),
        binary(PIXELS, b"x" * 13),
        binary(PIXELS, b"x" * 12, "-1"),
        binary(PIXELS, b"x" * 12, "999999"),
        binary(PIXELS, b"x" * 12, "9" * 30),
        binary(PIXELS, b"x" * 12, "0"),
        binary(PIXELS, b"x" * 12, "٣"),
        binary(request(), b"x"),
        binary(FILE, struct.pack("<I", 4) + b"no"),
        binary(FILE, struct.pack("<I", 1 << 31) + b"none"),
        binary(FILE, struct.pack("<I", 4) + b"none"),
    ],
)
def test_binary_tensors_that_do_not_fit_are_refused(client, body, headers):
    headers = {name: value.encode() for name, value in headers.items()}
    response = client.post("/v2/models/mean/infer", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json().keys() == {"error"}


def test_a_version_that_is_not_loaded_is_not_found(client):
    for path in ("", "/ready", "/infer"):
        method = client.post if path == "/infer" else client.get
        assert method(f"/v2/models/mean/versions/1{path}").status_code == 404
    version = client.get("/v2/models/mean").json()["versions"][0]
    assert client.get(f"/v2/models/mean/versions/{version}/ready").json()["ready"] is True
