"""What strangers write into lists, headers and names is shown to people, and no terminal takes it for its own."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount_kit import command_of, typed
from tests.records_kit import OPEN_TOML, web

WORDS = "\x1b]0;mine\x07\x9b31m\x7f"
SHOWN = r"\x1b]0;mine\x07\x9b31m\x7f"


def _on_a_terminal(*arguments: str | Path) -> str:
    """What a command writes to a terminal, as stdout."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command_of(arguments), stdout=theirs) as process, os.fdopen(ours, "rb", buffering=0) as shown:
        os.close(theirs)
        said = b""
        while True:
            try:
                said += shown.read(65536)
            except OSError:  # EIO: nobody has the other end any more
                break
        process.wait()
    return said.decode()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "cachefs.toml").write_text(OPEN_TOML)
    return tmp_path


def _lock(data_dir: Path, url: str) -> None:
    """The records of `data_dir`: one, of this URL."""
    lines = ['lock-version = "1.0"', "[[record]]", 'name = "a.flac"', f'url = "{url}"', "size = 3"]
    (data_dir / "records-lock.toml").write_text("\n".join([*lines, f'hashes = {{ sha256 = "{"0" * 64}" }}', ""]))


def test_the_words_of_a_servers_header_are_escaped_in_an_error(data_dir: Path) -> None:
    with web() as host:
        url = host.put("a.flac", b"abc", headers={"Content-Encoding": "\x1b[31m\x9b"})
        assert r"sends the bytes as \x1b[31m\x9b, though" in typed("etch", url, "--data-dir", data_dir).stderr


def test_the_words_of_a_playlist_are_escaped(data_dir: Path) -> None:
    _lock(data_dir, "https://x.invalid/a.flac")
    (data_dir / "list.m3u8").write_text(f"{WORDS}\na.flac\n")
    assert f"{SHOWN}: no record here" in typed("play", data_dir / "list.m3u8", "--data-dir", data_dir).stderr


def test_a_file_name_is_escaped_where_it_is_told_that_it_is_left_out(tmp_path: Path) -> None:
    for name in ("a.seg", f"{WORDS}.seg"):
        (tmp_path / name).write_bytes(b"a")
    done = typed("torrent-hashes", tmp_path)
    assert done.stderr.startswith(f"cachefs: {SHOWN}.seg is left out")


def test_what_goes_to_a_terminal_is_escaped_and_what_goes_elsewhere_is_as_it_is() -> None:
    with web() as host:
        host.put("manifest.txt", f"{WORDS}.seg\n".encode())
        assert f"{SHOWN}.seg: its .torrent is not listed" in _on_a_terminal("manifest-verify", host.url)
        assert f"{WORDS}.seg: its .torrent is not listed" in typed("manifest-verify", host.url).stdout


def test_what_is_logged_is_one_line_and_its_words_are_escaped(tmp_path: Path) -> None:
    code = "import logging; from cachefs.cli import {}; {}; logging.error('%s', {!r})"
    code = code.format("terminal", "terminal.log_to_stderr(20, '%(levelname)s %(message)s')", f"{WORDS}\nERROR not so")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == f"ERROR {SHOWN}\\nERROR not so\n"
