"""A public server that sends its listeners to a private address: neither an etch nor a play goes there.

How it works: in a network namespace an address of the public internet is the machine's own, so a server there is public
as far as anybody can tell, and on loopback the same server is private.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs.catalog.records import LOCK_NAME
from tests.counterparts import Child, running
from tests.mount_kit import command_of, mounted, read_error
from tests.network_kit import own_internet
from tests.records_kit import song, stored

PUBLIC = "8.8.4.4"
PORT = 8000
HTTP_ONLY = "[records]\nallow_http = true\n"

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        name = self.path.split("/")[-1]
        body = open(sys.argv[1] + "/song.mp3", "rb").read()
        self.send_response(302 if name.startswith("moved") else 200)
        if name.startswith("moved"):
            body = b""
            self.send_header("Location", "http://127.0.0.1:%d/secret.mp3" % int(sys.argv[2]))
        self.send_header("Content-Type", "audio/mpeg")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, form, *args):
        print("asked", self.path, flush=True)
server = http.server.ThreadingHTTPServer(("", int(sys.argv[2])), Handler)
print("listening", flush=True)
server.serve_forever()
"""


@pytest.fixture
def internet(tmp_path: Path) -> Iterator[tuple[tuple[str, ...], Child]]:
    """Where PUBLIC is a server: what to put before a command to run it there, and the server."""
    (tmp_path / "song.mp3").write_bytes(song(1, 300_000))
    with own_internet(PUBLIC) as within:
        command = [*within, "python3", "-c", SERVER, str(tmp_path), str(PORT)]
        with running("server", command) as server:
            server.wait_until("listening", lambda: "listening" in server.printed())
            yield within, server


def etch(within: tuple[str, ...], data: Path, name: str) -> subprocess.CompletedProcess[str]:
    """`cachefs etch` of this file of the public server."""
    data.mkdir(exist_ok=True)
    (data / "cachefs.toml").write_text(HTTP_ONLY)
    command = [*within, *command_of(["etch", f"http://{PUBLIC}:{PORT}/{name}", "--data-dir", data])]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_an_etch_and_a_play_refuse_to_be_sent_to_a_private_address(
    internet: tuple[tuple[str, ...], Child], tmp_path: Path
) -> None:
    within, server = internet
    done = etch(within, tmp_path / "etcher", "song.mp3")
    assert done.returncode == 0, done.stderr
    moved = etch(within, tmp_path / "etcher", "moved.mp3")
    assert moved.returncode == 1
    assert "127.0.0.1 is at 127.0.0.1, a private address; [records] allow_private = true" in moved.stderr
    assert len(stored(tmp_path / "etcher")) == 1

    data = tmp_path / "data"
    data.mkdir()
    shutil.copytree(tmp_path / "etcher" / "pieces", data / "pieces")
    lock = (tmp_path / "etcher" / LOCK_NAME).read_text()
    (data / LOCK_NAME).write_text(lock.replace("/song.mp3", "/moved.mp3"))
    with mounted(tmp_path, settings=HTTP_ONLY, within=within) as mount:
        assert read_error(mount.mountpoint / "records" / "song.mp3") == "EACCES"
    assert "/moved.mp3" in server.printed()
    assert "/secret.mp3" not in server.printed()
