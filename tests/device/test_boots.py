from pathlib import Path

import pytest

from edge_agent.device.boots import MOST_BOOTS, Boots


def test_what_a_boot_has_learnt_is_known_in_the_next(tmp_path: Path) -> None:
    boots = Boots(tmp_path / "boots.json")
    assert (boots.newest_ms, boots.offset_ms("a")) == (0, None)
    boots.learn("a", 1_800_000_000_000, 1_800_000_060_000)
    boots.save()
    later = Boots(tmp_path / "boots.json")
    assert (later.newest_ms, later.offset_ms("a")) == (1_800_000_060_000, 1_800_000_000_000)


def test_it_forgets_the_boots_that_learnt_nothing_for_longest(tmp_path: Path) -> None:
    boots = Boots(tmp_path / "boots.json")
    for number in range(MOST_BOOTS):
        boots.learn(f"{number:032x}", number, number)
    boots.learn(f"{0:032x}", 7, 7)
    boots.learn("new", 8, 8)
    boots.save()
    kept = Boots(tmp_path / "boots.json")
    assert kept.offset_ms(f"{1:032x}") is None
    assert [kept.offset_ms(boot) for boot in (f"{0:032x}", f"{2:032x}", "new")] == [7, 2, 8]
    assert (tmp_path / "boots.json").stat().st_size < 4096


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b'{"boots": {"a": "then"}}', b'{"boots": {"\xff": 1}}', b"[]"])
def test_a_damaged_file_counts_as_none_and_is_replaced(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "boots.json"
    path.write_bytes(content)
    boots = Boots(path)
    assert str(path) in capsys.readouterr().out
    assert boots.offset_ms("a") is None
    boots.learn("a", 1, 2)
    boots.save()
    assert Boots(path).offset_ms("a") == 1
