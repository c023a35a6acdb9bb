from pathlib import Path

import pytest

from tests.standin import build


def test_says_what_is_missing_where_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")

    reason = build.why_not()

    assert reason is not None
    assert "compiler" in reason


def test_a_failed_build_ends_with_the_compilers_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho no room left >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))

    with pytest.raises(RuntimeError, match="no room left"):
        build.build(tmp_path)


def test_the_library_is_found_before_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")

    assert build.environment(tmp_path)["LD_LIBRARY_PATH"] == f"{tmp_path}:/opt/lib"
