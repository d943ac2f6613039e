"""Masks in answers: those of the bundle, only if they are asked for, and not more than a server can make."""

import base64
import io
import json

import numpy as np
import pytest
from hotcoco import mask as rle
from PIL import Image

from tests.support.bundles import bright_and_dark, masked_files, noise, write_files
from tests.unit.serving.conftest import encoded, error_of, listening

IMAGE = noise((50, 70), 3)


@pytest.fixture
def masked(tmp_path):
    return write_files(tmp_path / "masked", masked_files())


def decode(mask):
    return rle.decode({**mask, "counts": mask["counts"].encode()})


def detect(client, options, image=IMAGE):
    response = client.post(f"/v1/detect?{options}", content=encoded(image))
    assert response.status_code == 200, response.text
    return response.json()


def test_masks_are_given_as_rle_from_the_score_on_that_was_asked_for(served, masked):
    client = served(masked)
    answer = detect(client, "threshold=0&masks=0")
    [found] = answer["images"]
    masks = [decode(one["segmentation"]) for one in found["detections"]]
    assert np.array_equal(masks, bright_and_dark(IMAGE))
    assert answer["timings_ms"]["masks"] > 0
    some = detect(client, "threshold=0&masks=0.4")["images"][0]["detections"]
    assert [("segmentation" in one) for one in some] == [True, False]
    assert "segmentation" not in json.dumps(detect(client, "threshold=0"))
    [cat] = detect(client, "threshold=0&masks=0&classes=cat")["images"][0]["detections"]
    assert np.array_equal(decode(cat["segmentation"]), bright_and_dark(IMAGE)[1])
    # several of several sizes, in one request
    files = [("images", (f"{seed}.png", encoded(noise((40 + seed, 60), seed)))) for seed in range(3)]
    together = client.post("/v1/detect?threshold=0&masks=0", files=files).json()["images"]
    for seed, image in enumerate(together):
        masks = [decode(one["segmentation"]) for one in image["detections"]]
        assert np.array_equal(masks, bright_and_dark(noise((40 + seed, 60), seed)))


def test_the_panoptic_picture_is_a_png_with_its_segments(served, masked):
    image = np.full((64, 96, 3), 200, np.uint8)
    image[:, :40] = 100
    [found] = detect(served(masked), "threshold=0.9&panoptic=true", image)["images"]
    assert found["detections"] == []
    colors = np.array(Image.open(io.BytesIO(base64.b64decode(found["panoptic"]["png"]))))
    [dog, cat] = found["panoptic"]["segments_info"]
    assert np.array_equal(colors @ [1, 256, 65536], np.where(image[..., 0] == 200, dog["id"], cat["id"]))
    assert (dog["category_id"], dog["area"], dog["bbox"]) == (18, 64 * 56, [40, 0, 56, 64])
    assert (cat["category_id"], cat["area"], cat["bbox"]) == (17, 64 * 40, [0, 0, 40, 64])


def test_the_drawn_picture_has_masks(served, masked):
    image = np.full((64, 96, 3), 200, np.uint8)
    client = served(masked)
    drawn = client.post("/v1/detect?format=png&threshold=0.6", content=encoded(image))
    pixels = np.array(Image.open(io.BytesIO(drawn.content)))
    assert (pixels[60, 90] != 200).any()  # far from the box of the dog, whose mask is all that is bright
    assert client.get("/v1/models").json()["models"][0]["masks"] is True


def test_what_a_model_has_not_or_is_too_much_is_refused(served, client, masked):
    for option in ("masks=0", "panoptic=true"):
        response = client.post(f"/v1/detect?{option}", content=encoded())
        assert "has no masks" in error_of(response, 422, "invalid")
    small = served(masked, max_mask_pixels=2 * 40 * 60 - 1)
    for options in ("threshold=0&masks=0", "threshold=0&format=png", "threshold=0.3&masks=0&panoptic=true"):
        response = small.post(f"/v1/detect?{options}", content=encoded())
        assert "2 masks have 4,800 pixels" in error_of(response, 413, "too_large")
    assert small.post("/v1/detect?threshold=0.3&masks=0", content=encoded()).status_code == 200
    body = {
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": list(IMAGE.shape), "data": IMAGE.tolist()}],
        "outputs": [{"name": "masks"}],
        "parameters": {"threshold": 0},
    }
    assert small.post("/v2/models/mean/infer", json=body).status_code == 413
    assert error_of(client.post("/v1/detect?masks=2", content=encoded()), 422, "invalid")


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_masks_if_it_asks(served, masked, binary):
    http = pytest.importorskip("tritonclient.http")
    pixels = http.InferInput("image", [1, *IMAGE.shape], "UINT8")
    pixels.set_data_from_numpy(IMAGE[None])
    with listening(served(masked).service) as address, http.InferenceServerClient(address) as client:
        names = [one["name"] for one in client.get_model_metadata("mean")["outputs"]]
        assert names == ["scores", "labels", "boxes", "masks"]
        wanted = [http.InferRequestedOutput(name, binary_data=binary) for name in ("masks", "scores")]
        found = client.infer("mean", [pixels], outputs=wanted, parameters={"threshold": 0.0})
        masks = [decode(json.loads(text)) for text in found.as_numpy("masks")]
        assert np.array_equal(masks, bright_and_dark(IMAGE))
        assert client.infer("mean", [pixels]).as_numpy("masks") is None
