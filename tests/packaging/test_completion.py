"""The completion for bash, in a real bash with a terminal: what is typed, and what stands there after the Tab key."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent import cli

ROOT = Path(__file__).parents[2]
FILE = ROOT / "packaging/edge-agent.bash-completion"
BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")
# The Tab key writes all that fits into the line, one beside the other; Ctrl-X p prints the line and empties it.
SETUP = """\
PS1=; unset HISTFILE
bind 'set enable-bracketed-paste off'
bind '"\\t": insert-completions'
_show() {{ printf '<<<%s>>>\\n' "$READLINE_LINE"; READLINE_LINE=; READLINE_POINT=0; }}
bind -x '"\\C-xp": _show'
BASH_COMPLETION_USER_DIR={home}
. {bash_completion}
complete -p edge-agent || printf '<<<%s>>>\\n' ready
"""


class Shell:
    """A bash that a person sits at."""

    def __init__(self, folder: Path, home: Path) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "LC_ALL": "C.UTF-8"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self._write(SETUP.format(home=home, bash_completion=BASH_COMPLETION))
        assert self._read() == "ready"

    def complete(self, typed: str) -> str:
        """Return the line after Tab."""
        self._write(f"{typed}\t\x18p")
        return self._read()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def _write(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def _read(self) -> str:
        """Return what stands between the next pair of marks that the shell itself prints, not the terminal's echo."""
        seen, give_up = "", time.monotonic() + 60
        while ">>>\r\n" not in seen.rpartition("<<<")[2] or "%s" in seen.rpartition("<<<")[2]:
            assert select.select([self._ours], [], [], max(0, give_up - time.monotonic()))[0], seen
            seen += os.read(self._ours, 65536).decode()
        return seen.rpartition("<<<")[2].partition(">>>")[0]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell in a folder with files, which finds the completion where the package puts it, when it is first needed."""
    if not (shutil.which("bash") and BASH_COMPLETION.exists()):
        pytest.skip("needs bash and the package bash-completion")
    folder, home = tmp_path_factory.mktemp("folder"), tmp_path_factory.mktemp("home")
    (folder / "a b").mkdir()
    (folder / "a b" / "inner.toml").touch()
    (folder / "a.toml").touch()
    (home / "completions").mkdir()
    (home / "completions" / "edge-agent").symlink_to(FILE)
    opened = Shell(folder, home)
    yield opened
    opened.close()


def test_the_committed_completion_is_that_of_the_code(tmp_path: Path) -> None:
    made = tmp_path / "completion"
    subprocess.run([sys.executable, str(ROOT / "packaging/completion.py"), str(made)], check=True, timeout=60)
    assert made.read_text() == FILE.read_text(), "the command line has changed: run `make docs`"


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_finds_no_fault() -> None:
    done = subprocess.run(
        ["shellcheck", "--shell=bash", str(FILE)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == ""


def test_commands(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["--help"])
    offered = shell.complete("edge-agent ").split()[1:]
    help_text = capsys.readouterr().out
    assert {"run", "check-config", "status", "reload", "--help", "--version"} <= set(offered)
    assert [name for name in offered if name not in help_text] == []


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("edge-agent ru", "edge-agent run "),
        ("edge-agent --v", "edge-agent --version "),
        ("edge-agent run --", "edge-agent run --config --help --state-dir "),
        ("edge-agent status --j", "edge-agent status --json "),
        ("edge-agent run --config x --s", "edge-agent run --config x --state-dir "),
        ("edge-agent status ", "edge-agent status "),
        ("edge-agent no-such-command --s", "edge-agent no-such-command --s"),
    ],
)
def test_words(shell: Shell, typed: str, completed: str) -> None:
    assert shell.complete(typed) == completed


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("edge-agent check-config a.", "edge-agent check-config a.toml "),
        ("edge-agent check-config ~/a.", "edge-agent check-config ~/a.toml "),
        ("edge-agent run --config a.", "edge-agent run --config a.toml "),
        ("edge-agent run --config=a.", "edge-agent run --config=a.toml "),
        ("edge-agent run --config 'a b/i", "edge-agent run --config 'a b/inner.toml' "),
        (r"edge-agent run --config a\ b/i", r"edge-agent run --config a\ b/inner.toml "),
        ("edge-agent run --config ", r"edge-agent run --config a\ b a.toml "),
        ("edge-agent run --config=", r"edge-agent run --config=a\ b a.toml "),
        ("edge-agent status --json > a.", "edge-agent status --json > a.toml "),
    ],
)
def test_files(shell: Shell, typed: str, completed: str) -> None:
    assert shell.complete(typed) == completed


@pytest.mark.parametrize("command", ["run", "status", "reload", "demo"])
@pytest.mark.parametrize("between", [" ", "="])
def test_folders(shell: Shell, command: str, between: str) -> None:
    typed = f"edge-agent {command} --state-dir{between}"
    assert shell.complete(typed).rstrip() == rf"{typed}a\ b"
