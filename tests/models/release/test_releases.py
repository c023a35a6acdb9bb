import msgspec
import pytest

from edge_agent.models.release.releases import RemoteObject, as_facts, describe


def _described(**facts: str) -> RemoteObject:
    return describe("gs://b/m", facts, generation="17", size=3, checksum="crc32c:AAAA")


def test_what_the_guides_write_is_understood() -> None:
    remote = _described(version="v1.3", accuracy="0.94", labels="normal, warning,failure")
    assert (remote.version, remote.accuracy) == ("v1.3", 0.94)
    assert remote.labels == ["normal", "warning", "failure"]
    assert remote.remarks == ()


def test_without_a_version_the_generation_is_one() -> None:
    assert _described().version == "generation-17"
    assert _described(version="  ").version == "generation-17"


def test_labels_as_json() -> None:
    assert _described(labels='["a, b", "c"]').labels == ["a, b", "c"]


@pytest.mark.parametrize(
    ("facts", "remark"),
    [
        ({"accuracy": "very good"}, "accuracy 'very good' is not a number"),
        ({"accuracy": "nan"}, "accuracy 'nan' is not a number"),
        ({"labels": "[1, 2]"}, "labels are not a JSON list of strings"),
        ({"labels": '["a"'}, "labels are not a JSON list of strings"),
    ],
)
def test_what_is_not_understood_is_left_out_and_named(facts: dict[str, str], remark: str) -> None:
    remote = _described(**facts)
    assert (remote.accuracy, remote.labels) == (None, None)
    assert remark in remote.remarks[0]


def test_a_version_is_made_fit_for_logs_and_attributes() -> None:
    assert _described(version=" v1\n\x1b[2Jé ").version == "v1??[2Jé"
    assert len(_described(version="x" * 5000).version) == 128


@pytest.mark.parametrize("change", [{"version": "w"}, {"generation": "18"}, {"checksum": "x"}, {"labels": ["a"]}])
def test_the_id_is_safe_and_changes_with_the_upload(change: dict[str, object]) -> None:
    remote = _described(version="../../etc/passwd")
    assert remote.id == _described(version="../../etc/passwd").id
    assert len(remote.id) == 16
    assert int(remote.id, 16)
    assert msgspec.structs.replace(remote, **change).id != remote.id


def test_facts_of_a_sidecar_become_text() -> None:
    assert as_facts({"version": 2, "labels": ["a"], "accuracy": None}) == {"version": "2", "labels": '["a"]'}
    with pytest.raises(ValueError, match="not a JSON object"):
        as_facts(["v1"])
