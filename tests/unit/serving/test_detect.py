"""What ``/v1`` answers is what ``predict`` finds, and says who found it."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
from PIL import Image

from detrkit import runtime
from detrkit.errors import UsageError
from detrkit.serving.contract import DetectResponse, ModelsResponse
from detrkit.serving.guard import JsonFormatter
from detrkit.threshold_file import ClassThreshold, Thresholds
from tests.support.bundles import bundle_files, expected_scores, noise, write_files
from tests.unit.serving.conftest import FIXED, encoded, error_of

PICTURES = [noise((40, 60), 1), noise((60, 40), 2), noise((1, 1), 3), noise((40, 60), 4), noise((300, 200), 5)]


def found_by(bundle, image, threshold):
    """Boxes, scores, class ids, as predict gives them, exactly."""
    found = runtime.load(bundle).predict(image, threshold)
    return [found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist()]


def answered(image):
    rows = image["detections"]
    return [[row[key] for row in rows] for key in ("box_xyxy", "score", "class_id")]


def test_answers_are_those_of_predict_to_the_last_digit_alone_and_together(client, bundle):
    files = [("images", (f"{i}.png", encoded(image))) for i, image in enumerate(PICTURES)]
    together = client.post("/v1/detect?threshold=0", files=files).json()
    assert [image["name"] for image in together["images"]] == [f"{i}.png" for i in range(len(PICTURES))]
    for image, one in zip(PICTURES, together["images"], strict=True):
        expected = found_by(bundle, image, 0)
        alone = client.post("/v1/detect?threshold=0", content=encoded(image)).json()["images"][0]
        assert answered(one) == answered(alone) == expected
        assert (one["height"], one["width"]) == image.shape[:2]


def test_requests_at_once_share_batches_and_get_their_own_answers(served):
    client = served(max_waiting=100)
    slow = client.service.store.models[0].batcher
    run, sizes = slow._detect, []

    def slower(images, sizes_hw):
        sizes.append(len(images))
        if len(sizes) == 1:
            time.sleep(0.1)
        return run(images, sizes_hw)

    slow._detect = slower
    with ThreadPoolExecutor(12) as pool:
        images = [noise((40, 60), seed) for seed in range(24)]
        found = list(pool.map(lambda image: client.post("/v1/detect?threshold=0", content=encoded(image)), images))
    scores = [one.json()["images"][0]["detections"][0]["score"] for one in found]
    assert scores == [pytest.approx(expected_scores(image)[0], abs=1e-6) for image in images]
    assert len(set(scores)) == 24
    assert max(sizes) > 1
    assert sum(sizes) == 24


def test_an_answer_says_who_gave_it_and_how_long_each_stage_took(client, bundle):
    response = client.post("/v1/detect", content=encoded(), headers={"X-Request-ID": "mine-1"})
    answer = msgspec.json.decode(response.content, type=DetectResponse)
    manifest = runtime.load(bundle).bundle.manifest
    assert (answer.model, answer.version) == ("mean", manifest.seal[:12])
    assert answer.runtime.startswith("onnxruntime ")
    assert answer.precision == "float32"
    assert answer.request_id == response.headers["X-Request-ID"] == "mine-1"
    assert {"queue", "decode", "preprocess", "inference", "postprocess"} <= answer.timings_ms.keys()
    assert "inference;dur=" in response.headers["Server-Timing"]


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 65, "../../etc", "a\tb", "<script>"])
def test_a_request_id_that_is_not_sane_is_replaced(client, request_id):
    given = client.get("/health/live", headers={"X-Request-ID": request_id}).headers["X-Request-ID"]
    assert given != request_id
    assert len(given) == 32


def test_thresholds_and_classes_choose(served, tmp_path):
    entries = (ClassThreshold("cat", 17, 0.9), ClassThreshold("dog", 18, 0.4))
    thresholds = Thresholds(entries, 0.5)
    files = bundle_files(thresholds=thresholds.to_dict())
    client = served(write_files(tmp_path / "with.zip", files))

    def classes(**options):
        response = client.post("/v1/detect", params=options, content=encoded())
        return [row["class_name"] for row in response.json()["images"][0]["detections"]]

    assert classes() == ["dog"]  # scores are about 0.5 and 0.25
    assert classes(threshold=0) == ["dog", "cat"]
    assert classes(threshold=0.6) == []
    assert classes(threshold=0, classes="cat") == ["cat"]
    assert classes(threshold=0, classes=["cat", "dog"]) == ["dog", "cat"]
    assert "fish" in error_of(client.post("/v1/detect?classes=fish", content=encoded()), 422, "invalid")
    for query in ("threshold=2", "threshold=nan", "threshold=x", "treshold=0.1", "threshold=0&threshold=1"):
        error_of(client.post(f"/v1/detect?{query}", content=encoded()), 422, "invalid")
    [model] = msgspec.json.decode(client.get("/v1/models").content, type=ModelsResponse).models
    assert model.classes == ["cat", "dog"]
    assert model.thresholds == json.loads(json.dumps(thresholds.to_dict()))


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_the_drawn_picture_is_one_and_says_in_headers_who_drew(client, kind):
    image = np.zeros((40, 60, 3), np.uint8)
    image[:20] = 255
    response = client.post(f"/v1/detect?threshold=0&format={kind}", content=encoded(image))
    assert response.headers["Content-Type"] == f"image/{kind}"
    assert response.headers["X-Detrkit-Model"] == "mean"
    with Image.open(io.BytesIO(response.content)) as drawn:
        assert drawn.format == kind.upper()
        assert drawn.size == (60, 40)
        assert not np.array_equal(np.array(drawn), image)
    two = [("a", ("a.png", encoded())), ("b", ("b.png", encoded()))]
    error_of(client.post(f"/v1/detect?format={kind}", files=two), 400, "bad_request")


def test_several_models_answer_by_their_names(served, bundle, tmp_path):
    other = write_files(tmp_path / "other", bundle_files(licence="MIT"))
    client = served(f"old={bundle}", f"new={other}")
    models = client.get("/v1/models").json()["models"]
    assert [model["name"] for model in models] == ["old", "new"]
    assert models[0]["version"] != models[1]["version"]
    for query, name in (("", "old"), ("?model=old", "old"), ("?model=new", "new")):
        assert client.post(f"/v1/detect{query}", content=encoded()).json()["model"] == name
    error_of(client.post("/v1/detect?model=../etc", content=encoded()), 404, "not_found")
    with pytest.raises(UsageError, match="mean"):
        served(bundle, other)


def test_metrics_and_the_log_tell_of_requests_and_of_no_content(client, caplog):
    with caplog.at_level(logging.INFO, "detrkit.serving"):
        client.post("/v1/detect", files=[("a", ("secret-name.png", encoded()))])
        client.post("/v1/detect", content=b"secret-content")
    lines = [
        JsonFormatter().format(record) for record in caplog.records if record.name.startswith("detrkit.serving")
    ]
    good, bad = (json.loads(line) for line in lines)
    assert (good["status"], good["route"], good["images"], good["model"]) == (200, "/v1/detect", 1, "mean")
    assert (bad["status"], bad["kind"]) == (400, "bad_image")
    assert good["stages_ms"].keys() >= {"queue", "inference"}
    assert "secret" not in "".join(lines)
    text = client.get("/metrics").text
    for line in (
        'detrkit_requests_total{route="/v1/detect",status="200"} 1.0',
        'detrkit_errors_total{kind="bad_image"} 1.0',
        'detrkit_images_total{model="mean"} 1.0',
        "detrkit_queue_images 0.0",
        'detrkit_batch_images_count{model="mean"} 1.0',
        'detrkit_stage_seconds_count{model="mean",stage="inference"} 1.0',
    ):
        assert line in text.splitlines()
    assert 'detrkit_model_info{model="mean"' in text


def test_openapi_describes_every_route_and_its_references_hold(client):
    text = client.get("/openapi.json").text
    described = json.loads(text)
    assert {"/v1/detect", "/v1/models", "/v2/models/{name}/infer", "/metrics"} <= described["paths"].keys()
    for name in [part.split('"')[0] for part in text.split("#/components/schemas/")[1:]]:
        assert name in described["components"]["schemas"]


def test_a_page_is_served_where_there_is_one(served, tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<title>page</title>")
    (tmp_path / "page" / "app.js").write_text("1")
    client = served(page=tmp_path / "page", token="x" * 16, host="0.0.0.0")
    assert "page" in client.get("/").text
    assert client.get("/app.js").status_code == 200
    assert "script-src 'self'" in client.get("/").headers["Content-Security-Policy"]
    assert client.get("/other.js").status_code == 401  # what is not the page's own is not public
    assert client.get("/../bundle/bundle.json").status_code == 401


def test_samples_are_written_until_the_folder_is_full(served, tmp_path):
    content = encoded(np.full((40, 60, 3), 200, np.uint8))
    folder = tmp_path / "samples"
    size = 2 * (len(content) + 600)
    client = served(sample_dir=folder, sample_rate=1.0, sample_max_bytes=size)
    for _ in range(5):
        assert client.post("/v1/detect?threshold=0", content=content).status_code == 200
    client.service.sampler.close()
    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert 1 <= len(records) < 5
    assert (folder / records[0]["file"]).read_bytes() == content
    assert records[0]["classes"] == ["dog"]  # from the model's threshold on, whatever the request asked for
    assert records[0]["brightness"] == pytest.approx(200 / 255, abs=0.01)
    assert records[0]["box_sizes_wh"] == [pytest.approx([24.0, 16.0])]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= size
    client.service.sampler._thread = None
    assert served(sample_dir=tmp_path / "none", sample_rate=0.0).post("/v1/detect", content=content).is_success
    assert list((tmp_path / "none").iterdir()) == []


def test_no_torch_is_imported_by_a_server(bundle):
    code = f"""
import sys
from detrkit.serving.app import make_app
from detrkit.serving.service import Service
from detrkit.serving.settings import ServeSettings
service = Service([{str(bundle)!r}], ServeSettings(**{FIXED!r}))
make_app(service)
service.close()
assert not {{"torch", "supervision"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
