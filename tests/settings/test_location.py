"""URLs of models and sinks, and the model's name that a URL gives."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.settings.location import (
    Destination,
    Location,
    absolute,
    parse_destination,
    parse_location,
)


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("gs://bucket/model.tflite", Location("gs", "bucket", "model.tflite")),
        ("gs://my.bucket-1/a b/ü#1.tflite", Location("gs", "my.bucket-1", "a b/ü#1.tflite")),
        ("file:///srv/a%20b.tflite", Location("file", "", "/srv/a b.tflite")),
        ("/srv/model.tflite", Location("file", "", "/srv/model.tflite")),
    ],
)
def test_locations_that_are_read(text: str, location: Location) -> None:
    assert parse_location(text) == location
    assert parse_location(str(location)) == location


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("pubsub://your-project/inference-results", Destination("pubsub", "your-project", "inference-results")),
        ("pubsub://example.com:lab/results", Destination("pubsub", "example.com:lab", "results")),
        ("file:///var/log/events.jsonl", Destination("file", path="/var/log/events.jsonl")),
        ("/var/log/events.jsonl", Destination("file", path="/var/log/events.jsonl")),
    ],
)
def test_destinations_that_are_read(text: str, destination: Destination) -> None:
    assert parse_destination(text) == destination
    assert parse_destination(str(destination)) == destination


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_location, "s3://b/x", '"s3://b/x" must begin with gs:// or file:///, or be a path'),
        (parse_location, "gs://", '"gs://" names no bucket; write gs://BUCKET/OBJECT'),
        (parse_location, "gs://My_Bucket/x", '"gs://My_Bucket/x" names no bucket; write gs://BUCKET/OBJECT'),
        (parse_location, "gs://b", '"gs://b" names no object in the bucket; write gs://BUCKET/OBJECT'),
        (parse_location, "gs://b/x/", '"gs://b/x/" names no object in the bucket; write gs://BUCKET/OBJECT'),
        (parse_location, "file://srv/x", '"file://srv/x" needs three slashes: file:///PATH'),
        (parse_location, "/srv/", '"/srv/" names a folder; name the file in it'),
        (parse_location, "gs:/b/x", '"gs:/b/x" is neither a URL nor meant as a path; write gs://BUCKET/OBJECT'),
        (
            parse_destination,
            "projects/your-project/topics/results",
            '"projects/your-project/topics/results" is neither a URL nor meant as a path; write pubsub://PROJECT/TOPIC',
        ),
        (parse_location, "", 'expected gs://BUCKET/OBJECT or a path in quotes, not ""'),
        (parse_location, 5, "expected gs://BUCKET/OBJECT or a path in quotes, not 5"),
        (parse_destination, "gs://b/x", '"gs://b/x" must begin with pubsub:// or file:///, or be a path'),
        (parse_destination, "pubsub://p", '"pubsub://p" names no topic; write pubsub://PROJECT/TOPIC'),
        (parse_destination, "pubsub://p/a/b", '"pubsub://p/a/b" names no topic; write pubsub://PROJECT/TOPIC'),
        (parse_destination, [], "expected pubsub://PROJECT/TOPIC or a path in quotes, not []"),
    ],
)
def test_urls_that_are_refused(parse: Callable[[object], object], text: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(text)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("gs://b/edge-models/vibration-classifier/latest/model_quant_edgetpu.tflite", "vibration-classifier"),
        ("gs://b/mobilenet_v2_1.0_224_quant_edgetpu.tflite", "mobilenet_v2_1.0_224"),
        ("gs://pumps/models/latest/model.tflite", "pumps"),
        ("gs://models/latest/model.tflite", "model"),
        ("file:///srv/pumps/model_edgetpu.tflite", "pumps"),
        ("model.tflite", "model"),
        ("gs://b/_edgetpu.tflite", "b"),
    ],
)
def test_the_name_of_a_model(url: str, name: str) -> None:
    assert parse_location(url).default_name == name


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("m.tflite", "/etc/m.tflite"),
        ("../srv/./m.tflite", "/srv/m.tflite"),
        ("/m.tflite", "/m.tflite"),
        ("gs://b/../m", "gs://b/../m"),
        ("pubsub:/p/t", "pubsub:/p/t"),
        ("projects/p/topics/t", "projects/p/topics/t"),
        ("projects/p/m.tflite", "/etc/projects/p/m.tflite"),
        ("../", "../"),
        ("", ""),
    ],
)
def test_relative_paths_start_from_the_folder(text: str, result: str) -> None:
    assert absolute(text, Path("/etc")) == result
