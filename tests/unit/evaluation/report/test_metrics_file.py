"""metrics.json and its schema."""

from __future__ import annotations

import json

import jsonschema
import pytest

from detrkit.evaluation.report.metrics_file import metrics_schema, write_metrics_json

SCHEMA = metrics_schema()
FIELDS = SCHEMA["$defs"]["MetricsFile"]["properties"]


def written(evaluation, folder):
    write_metrics_json(folder / "metrics.json", evaluation)
    text = (folder / "metrics.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def check(content):
    jsonschema.validate(content, SCHEMA, cls=jsonschema.Draft202012Validator)


def test_the_schema_is_a_schema_and_refuses_what_is_wrong(plain, tmp_path):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    content = written(plain, tmp_path)
    for change in (
        {"AP": 42.0},
        {"AP": -1},
        {"images": "40"},
        {"schema_version": 2},
        {"errors": {"cost": {}}},
        {"confusion": {"matrix": [[-1]], "classes": [], "score": 0.5, "iou": 0.5}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            check({**content, **change})
    with pytest.raises(jsonschema.ValidationError):
        check({name: value for name, value in content.items() if name != "intervals"})


def test_a_full_evaluation_follows_the_schema_and_names_every_key_of_it(plain, tmp_path):
    content = written(plain, tmp_path)
    check(content)
    assert set(content) == set(FIELDS)
    without = ["masks", "mask_intervals", "panoptic"]  # of a model that has boxes alone
    assert [name for name, value in content.items() if value is None] == without
    assert set(content["per_class"][0]) == set(SCHEMA["$defs"]["ClassEntry"]["properties"])
    assert content["AP"] == plain["AP"]
    assert content["intervals"]["values"]["AP"]["low"] <= content["AP"]
    assert content["confusion"]["classes"] == [*plain.class_names, None]
    assert len(content["score_curves"]["thresholds"]) == len(content["score_curves"]["f1"])
