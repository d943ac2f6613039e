"""Bundles are exchanged while requests run, and only for such as verify."""

from __future__ import annotations

import shutil
import time

import pytest

from detrkit.errors import BundleError, UsageError
from tests.support.bundles import bundle_files, mean_graph, noise, write_files
from tests.unit.serving.conftest import encoded, error_of
from tests.unit.serving.test_limits import Blocked, in_thread


def exchange(bundle, files):
    """Put other files where a bundle lies."""
    shutil.rmtree(bundle)
    write_files(bundle, files)


def other_graph() -> bytes:
    """Finds something else in the golden pictures than they say."""
    model = mean_graph()
    [halves] = [one for one in model.graph.initializer if one.name == "halves"]
    halves.raw_data = halves.raw_data[4:] + halves.raw_data[:4]
    return model.SerializeToString()


BROKEN = {
    "changed": {**bundle_files(), "graph.onnx": b"changed"},
    "cut off": {**bundle_files(), "bundle.json": bundle_files()["bundle.json"][:100]},
    "finds something else": bundle_files(other_graph()),
    "without golden pictures": bundle_files(golden=()),
    "another picture": {**bundle_files(), "golden/0.png": encoded(noise((40, 60), 9))},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bundle_that_does_not_verify_is_not_served(served, bundle, name):
    exchange(bundle, BROKEN[name])
    with pytest.raises((BundleError, UsageError), match="bundle"):
        served()


@pytest.mark.parametrize("name", BROKEN)
def test_the_old_bundle_goes_on_where_the_new_one_does_not_verify(client, bundle, name):
    before = client.get("/v1/models").json()
    exchange(bundle, BROKEN[name])
    error_of(client.post("/v1/models/mean/reload"), 409, "conflict")
    assert client.get("/v1/models").json() == before
    assert client.post("/v1/detect", content=encoded()).status_code == 200
    assert 'detrkit_reloads_total{model="mean",outcome="refused"} 1.0' in client.get("/metrics").text
    exchange(bundle, bundle_files(licence="MIT"))
    assert client.post("/v1/models/mean/reload").status_code == 200
    assert client.get("/v1/models").json() != before


def test_requests_that_are_at_work_are_answered_by_the_bundle_that_they_came_to(served, bundle):
    client = served(batch_size=1)
    old = client.service.store.models[0]
    blocked = Blocked(client)
    running = [in_thread(client.post, "/v1/detect", content=encoded()) for _ in range(3)]
    blocked.started.wait(5)
    while client.service.gate._images < 3:
        time.sleep(0.001)
    exchange(bundle, bundle_files(licence="MIT"))
    new = client.post("/v1/models/mean/reload").json()["version"]
    assert new != old.version
    assert client.post("/v1/detect", content=encoded()).json()["version"] == new
    blocked.go.set()
    for thread, found in running:
        thread.join()
        assert found[0].json()["version"] == old.version
    for thread in old.batcher._threads:  # nobody holds it any more
        thread.join(5)
        assert not thread.is_alive()
    text = client.get("/metrics").text
    assert f'version="{new}"' in text
    assert f'version="{old.version}"' not in text


def test_one_reload_at_a_time(client, monkeypatch):
    assert client.service.store._slots["mean"].reloading.acquire()
    error_of(client.post("/v1/models/mean/reload"), 409, "conflict")
    client.service.store._slots["mean"].reloading.release()
    assert client.post("/v1/models/mean/reload").status_code == 200
    error_of(client.post("/v1/models/other/reload"), 404, "not_found")
    assert client.get("/v1/models/mean/reload").status_code in (404, 405)


def test_a_server_that_was_told_to_stop_is_not_ready(client):
    client.service.draining = True
    for path in ("/health/ready", "/v2/health/ready"):
        assert client.get(path).status_code == 503
    assert client.get("/health/live").status_code == 200
