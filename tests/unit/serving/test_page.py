"""The page at ``/`` in a real browser. The tiny bundle finds a dog, its score a picture's mean, and half a cat."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detrkit.serving.app import PAGE, make_app
from detrkit.serving.protocol import LimitedProtocol
from detrkit.serving.service import Service
from detrkit.serving.settings import ServeSettings
from detrkit.threshold_file import ClassThreshold, ScoreScale, Thresholds
from tests.support.bundles import bundle_files, write_files
from tests.support.chromium import PROGRAM, chromium
from tests.unit.serving.conftest import FIXED, TOKEN, encoded

in_browser = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here")]
ANSWERED = "[...document.querySelectorAll('.count')].every(each => each.textContent !== '…')"
COUNTS = "[...document.querySelectorAll('#classes .count')].map(each => each.textContent)"
STATUS = "document.querySelector('#status').textContent"
FAILURE = "[...document.querySelectorAll('.failure, #problem')].find(each => !each.hidden)?.innerText"


def gray(level, size_hw=(40, 60)):
    return encoded(np.full((*size_hw, 3), level, np.uint8))


def test_files_of_the_page_refer_to_nothing_outside_and_hold_nothing_that_the_policy_forbids(served):
    client = served(token=TOKEN, host="0.0.0.0")
    names = {path.name for path in PAGE.iterdir()}
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for name in ["", *names]:
        response = client.get(f"/{name}")
        kind = response.headers["Content-Type"].partition(";")[0]
        assert kind == kinds[Path(name or "index.html").suffix[1:]]
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        outside = re.findall(r"""(?:https?:)?//[\w.]+|url\(|@import|innerHTML|eval\(""", response.text)
        assert outside in ([], ["http://www.w3.org"])  # the name space of SVG
    text = (PAGE / "index.html").read_text()
    assert not re.findall(r"""\s(?:style|on\w+)=|<style|<script(?![^>]*\ssrc=)""", text)
    used = re.findall(r"""(?:src|href)="([^"]+)\"""", text)
    used += [name for path in PAGE.glob("*.js") for name in re.findall(r"""from "\./(.+?)";""", path.read_text())]
    assert set(used) | {"index.html"} == names
    assert "camera=(self)" in client.get("/").headers["Permissions-Policy"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def live(bundle):
    """Starts servers at real addresses, by settings."""
    with contextlib.ExitStack() as stack:

        def start(*bundles, **settings):
            service = Service(bundles or [bundle], ServeSettings(**{**FIXED, **settings}))
            config = uvicorn.Config(make_app(service), port=0, http=LimitedProtocol, log_config=None)
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run)

            def stop():
                server.should_exit = True
                thread.join()

            stack.callback(stop)
            thread.start()
            while not server.started:
                time.sleep(0.01)
            return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", stop

        yield start


def write_pictures(folder, **contents):
    paths = [folder / f"{name}.png" for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    return paths


def give(page, *paths):
    page.wait("document.querySelector('#model-0').options.length")
    page.choose_files("#files", paths)
    page.wait(f"document.querySelectorAll('#strip li').length && {ANSWERED}")


def saved(page, folder, kind):
    """What the page lets the browser save."""
    page.save_into(folder)
    page.evaluate(f"document.querySelector('[data-kind={kind}]').click()")
    until = time.monotonic() + 20
    while not (files := list(folder.glob(f"*-{kind}.json"))) and time.monotonic() < until:
        time.sleep(0.05)
    content = json.loads(files[0].read_text())
    files[0].rename(folder / "saved.json")
    return content


def answer_with(page, status, body, headers=None):
    """Let the page's next requests be answered so, whatever they are."""
    made = (
        f"new Response({json.dumps(json.dumps(body))}, {json.dumps({'status': status, 'headers': headers or {}})})"
    )
    page.evaluate(f"window.fetch = async () => {made}; 1")


class TestPage:
    pytestmark = in_browser

    def test_detections_are_those_of_the_api_and_nothing_goes_elsewhere(self, browser, live, tmp_path):
        url, _ = live()
        page = browser.open(url)
        paths = write_pictures(tmp_path, first=encoded(), second=gray(200, (30, 90)))
        give(page, *paths)
        page.evaluate("document.querySelector('#threshold').value = 0.2")
        page.evaluate("document.querySelector('#threshold').dispatchEvent(new Event('input'))")
        content = saved(page, tmp_path, "annotations")
        results = []
        for number, path in enumerate(paths, 1):
            answer = httpx.post(
                f"{url}/v1/detect?threshold=0.2", content=path.read_bytes(), trust_env=False
            ).json()
            [image] = answer["images"]
            size = {"width": image["width"], "height": image["height"]}
            assert content["images"][number - 1] == {"id": number, "file_name": path.name, **size}
            for row in image["detections"]:
                left, top, right, bottom = row["box_xyxy"]
                one = {"image_id": number, "category_id": (17, 18)[row["class_id"]]}
                results.append({**one, "bbox": [left, top, right - left, bottom - top], "score": row["score"]})
        assert len(results) == 4
        assert [{key: row[key] for key in results[0]} for row in content["annotations"]] == results
        assert content["categories"] == [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
        assert len(COCO(tmp_path / "saved.json").loadRes(saved(page, tmp_path, "results")).anns) == 4

        assert page.complaints == []
        addresses = page.requests
        assert any("/v1/detect" in address for address in addresses)
        assert not [each for each in addresses if not each.removeprefix("blob:").startswith(url)]

    def test_the_models_own_thresholds_and_calibrated_scores_are_the_default(self, browser, live, tmp_path):
        entries = (ClassThreshold("cat", 17, 0.9), ClassThreshold("dog", 18, 0.4))
        thresholds = Thresholds(entries, 0.5, scale=ScoreScale(2.5, -0.3)).to_dict()
        url, _ = live(write_files(tmp_path / "with.zip", bundle_files(thresholds=thresholds)))
        page = browser.open(url)
        give(page, *write_pictures(tmp_path, one=gray(200)))
        wanted = httpx.post(f"{url}/v1/detect", content=gray(200), trust_env=False).json()["images"][0][
            "detections"
        ]
        found = saved(page, tmp_path, "results")
        assert [row["category_id"] for row in found] == [18] == [17 + row["class_id"] for row in wanted]
        assert np.float32(found[0]["score"]) == np.float32(wanted[0]["score"])

    def test_everything_goes_by_keyboard(self, browser, live, tmp_path):
        page = browser.open(live()[0])
        page.wait("document.querySelector('#model-0').options.length")

        def reach(what):
            for _ in range(60):
                page.press("Tab")
                style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert style != "none" or page.evaluate("document.activeElement === document.body")
                if page.evaluate(f"document.activeElement.matches({what!r})"):
                    return
            raise AssertionError(f"Tab never reaches {what}")

        page.call("Page.setInterceptFileChooserDialog", enabled=True)
        reach("#choose")
        page.press("Enter")
        chooser = page.await_event("Page.fileChooserOpened")
        files = [str(path) for path in write_pictures(tmp_path, a=gray(153), b=gray(240))]
        page.call("DOM.setFileInputFiles", files=files, backendNodeId=chooser["backendNodeId"])
        page.wait(f"document.querySelectorAll('#strip li').length === 2 && {ANSWERED}")
        assert page.evaluate(COUNTS) == ["0", "1"]  # 0.3 and 0.6, the threshold 0.5
        page.wait(f"{STATUS}.includes('1 object (1 dog)')")

        reach("#strip li:nth-child(2) button")
        page.press(" ")
        page.wait(f"{STATUS}.startsWith('b.png')")
        reach("#threshold")
        page.press("ArrowLeft", 10)
        assert page.evaluate(COUNTS) == ["1", "1"]  # 0.47 and 0.94 from 0.4 on
        page.press("ArrowRight", 20)
        assert page.evaluate(COUNTS) == ["0", "1"]
        assert page.evaluate("document.querySelector('#threshold-value').textContent") == "0.60"
        reach("canvas")
        page.press("+", 2)
        page.press("ArrowRight")
        assert page.evaluate("document.querySelector('#zoom-value').textContent") == "225 %"
        reach("summary")
        page.press("Enter")
        assert page.evaluate("document.querySelectorAll('details[open] tbody tr').length") == 1
        reach("#classes li:nth-child(2) input")
        page.press(" ")
        page.wait(f"{STATUS}.includes('0 objects')")
        assert page.evaluate("document.querySelectorAll('tbody tr').length") == 0
        reach("#strip [aria-current]")
        page.press("Delete")
        page.wait("document.querySelectorAll('#strip li').length === 1")
        assert page.evaluate("document.activeElement.matches('#strip [aria-current]')")
        assert page.complaints == []

    def test_a_token_is_asked_for_and_kept_in_this_tab_only(self, browser, live, tmp_path):
        page = browser.open(live(token=TOKEN)[0])
        page.wait("document.querySelector('#token-dialog').open")
        assert page.evaluate("document.activeElement.id") == "token"
        page.write("wrong-" + TOKEN)
        page.press("Enter")
        page.wait("document.querySelector('#token-reason').textContent.includes('did not take')")
        page.write(TOKEN)
        page.press("Enter")
        give(page, *write_pictures(tmp_path, a=gray(153)))
        assert page.evaluate(COUNTS) == ["0", "1"]
        assert page.evaluate("[document.cookie, localStorage.length]") == ["", 0]
        assert not [each for each in page.requests if TOKEN in each]
        assert [each for each in page.complaints if "401" not in each] == []

    @pytest.mark.parametrize(
        ("settings", "content", "says"),
        [
            ({"max_bytes": 5000}, encoded(), "more than 5,000 bytes"),
            ({"max_bytes": 5000}, bytes(20 << 20), "too large|may take less"),
            ({"max_pixels": 1000}, encoded(), "60 x 40"),
            ({}, b"no picture", "could not be read"),
        ],
    )
    def test_a_refused_picture_says_why(self, browser, live, tmp_path, settings, content, says):
        page = browser.open(live(**settings)[0])
        give(page, *write_pictures(tmp_path, a=content))
        assert re.search(says, page.evaluate(FAILURE))
        page.wait(f"{STATUS}.includes('a.png · failed')")

    @pytest.mark.parametrize(
        ("status", "says", "again"),
        [
            (415, "does not take this kind", False),
            (422, "cannot use this request", False),
            (429, "busy", True),
            (503, "stopping", True),
            (504, "in time", True),
        ],
    )
    def test_a_refusal_of_the_server_can_be_tried_again_where_it_passes(
        self, browser, live, tmp_path, status, says, again
    ):
        page = browser.open(live()[0])
        page.wait("document.querySelector('#model-0').options.length")
        page.evaluate("window.real = fetch; 1")
        # the page waits by itself, as long as it is told
        headers = {"Retry-After": "0.01"} if status == 429 else {}
        answer_with(page, status, {"error": {"message": "<b>its words</b>"}}, headers)
        give(page, *write_pictures(tmp_path, a=gray(153)))
        text = page.evaluate(FAILURE)
        assert says in text
        assert "<b>its words</b>" in text
        assert ("Try again" in text) is again
        if again:
            page.evaluate("window.fetch = window.real; document.querySelector('.failure button').click()")
            page.wait(ANSWERED)
            assert page.evaluate(COUNTS) == ["0", "1"]

    def test_a_server_that_is_gone_is_said(self, browser, live, tmp_path):
        url, stop = live()
        page = browser.open(url)
        page.wait("document.querySelector('#model-0').options.length")
        stop()
        give(page, *write_pictures(tmp_path, a=gray(153)))
        assert "cannot be reached" in page.evaluate(FAILURE)

    def test_two_models_stand_side_by_side(self, browser, live, bundle, tmp_path):
        other = write_files(tmp_path / "other", bundle_files(licence="MIT"))
        page = browser.open(live(f"old={bundle}", f"new={other}")[0])
        give(page, *write_pictures(tmp_path, a=gray(153)))
        page.evaluate("document.querySelector('#model-1').value = 'new'; 1")
        page.evaluate("document.querySelector('#model-1').dispatchEvent(new Event('change'))")
        page.wait("[...document.querySelectorAll('.latency')].filter(each => !each.hidden).length === 2")
        assert page.evaluate(COUNTS) == ["0 | 0", "1 | 1"]
        facts = page.evaluate("[...document.querySelectorAll('.facts')].map(each => each.textContent)")
        assert facts[0] != facts[1]
        for stage in ("queue", "decode", "preprocess", "inference", "postprocess"):
            assert stage in page.evaluate("document.querySelector('.latency').innerText")

    def test_pictures_come_from_camera_clipboard_and_drops(self, browser, live):
        page = browser.open(live()[0])
        page.wait("document.querySelector('#model-0').options.length")
        text = json.dumps(base64.b64encode(gray(153)).decode())
        page.evaluate(
            f"""window.held = new DataTransfer();
            held.items.add(new File([Uint8Array.from(atob({text}), (c) => c.charCodeAt(0))], 'image.png'));
            document.dispatchEvent(new ClipboardEvent('paste', {{ clipboardData: held }}));
            document.dispatchEvent(new DragEvent('drop', {{ dataTransfer: held }})); 1"""
        )
        page.evaluate("document.querySelector('#open-camera').click()")
        page.wait("document.querySelector('#video').videoWidth")
        page.evaluate("document.querySelector('#shoot').click()")
        page.wait(f"document.querySelectorAll('#strip li').length === 3 && {ANSWERED}")
        names = page.evaluate("[...document.querySelectorAll('#strip img')].map(each => each.alt)")
        assert names == ["image.png", "image (2).png", "camera.jpg"]
        assert page.evaluate("document.querySelector('#video').srcObject") is None  # the camera is off
        page.evaluate("document.dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer() }))")
        assert "no file" in page.evaluate(FAILURE)
        page.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined }); 1")
        page.evaluate("document.querySelector('#open-camera').click()")
        assert "HTTPS" in page.evaluate(FAILURE)
        assert page.complaints == []

    def test_masks_are_decoded_as_pycocotools_does(self, browser, live, tmp_path):
        page = browser.open(live()[0])
        random = np.random.default_rng(0)
        masks = [random.random((37, 61)) < share for share in (0, 0.02, 0.5, 1)]
        masks += [np.add.outer(np.arange(400), np.arange(300)) < 350]  # long runs
        for mask in masks:
            packed = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            flips = np.flatnonzero(np.diff(np.concatenate([[False], mask.ravel(order="F")]).astype(int))) + 0
            counts = np.diff(np.concatenate([[0], flips, [mask.size]])).tolist()
            for runs in (packed["counts"].decode(), counts):
                rle = json.dumps({"size": packed["size"], "counts": runs})
                script = f"import('/masks.js').then((m) => [[...m.decodeMask({rle})], m.maskArea({rle})])"
                pixels, area = page.evaluate(script)
                assert np.array_equal(np.array(pixels).reshape(mask.shape), mask)
                assert area == mask.sum()

        # drawn over the picture, and saved with it
        page.wait("document.querySelector('#model-0').options.length")
        mask = np.zeros((40, 60), np.uint8, order="F")
        mask[10:30, 10:50] = 1
        packed = coco_mask.encode(mask)
        rle = {"size": packed["size"], "counts": packed["counts"].decode()}
        row = {"box_xyxy": [10, 10, 50, 30], "score": 0.9, "class_id": 1, "class_name": "dog", "segmentation": rle}
        image = {"name": "a", "width": 60, "height": 40, "detections": [row]}
        version = page.evaluate("fetch('/v1/models').then((r) => r.json()).then((r) => r.models[0].version)")
        label = {"model": "mean", "version": version, "runtime": "r", "precision": "p", "timings_ms": {"queue": 1}}
        answer_with(page, 200, {**label, "images": [image]})
        give(page, *write_pictures(tmp_path, a=gray(255)))
        centre = """[...(c => c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data)
                    (document.querySelector('canvas'))]"""
        page.wait(f"{centre}[0] < 250")
        page.evaluate("document.querySelector('#masks').click()")
        assert page.evaluate(centre) == [255, 255, 255, 255]
        [one] = saved(page, tmp_path, "annotations")["annotations"]
        assert one["segmentation"] == rle
        assert one["area"] == 800
