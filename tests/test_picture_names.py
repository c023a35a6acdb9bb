"""The name of a picture says where it belongs."""

from edge_agent.picture_names import file_name, object_name, object_url

WALL_NS = 1_777_629_600_007_999_999  # 2026-05-01T10:00:00.007999999Z


def test_a_file_is_named_after_device_and_capture() -> None:
    name = file_name("edge-001", 255, WALL_NS)
    assert name == "edge-001,2026-05-01,100000.007-ff.jpg"
    assert object_name(name) == "edge-001/2026-05-01/100000.007-ff.jpg"


def test_two_captures_in_a_millisecond_have_two_names() -> None:
    assert file_name("a", 1, WALL_NS) != file_name("a", 2, WALL_NS)


def test_the_url_lies_below_the_folder_of_the_settings() -> None:
    name = "a,2026-05-01,1.jpg"
    assert object_url("gs://bucket/prefix", name) == "gs://bucket/prefix/a/2026-05-01/1.jpg"
    assert object_url("gs://bucket/", name) == "gs://bucket/a/2026-05-01/1.jpg"


def test_a_clock_that_was_never_set_makes_a_name_too() -> None:
    assert file_name("a", 16, 16) == "a,1970-01-01,000000.000-10.jpg"


def test_the_longest_device_id_leaves_a_name_that_any_file_system_takes() -> None:
    assert len(file_name("x" * 128, 2**62, WALL_NS)) < 200
