"""Real programs of other makers to test against, each started on a random loopback port and ended by its pid.

How it works: a counterpart is a context manager around one child process. It is ready when a condition holds
that a client would notice (a port accepts, an RPC answers, a BitTorrent handshake for the right info-hash
comes back), never after a fixed time; waiting for the child to exit is what paces the polling, so a child
that dies is noticed at once and its output is in the error. A program that isn't installed is an error too.

Names like `history/v1-accounts.0-64.v` in an info dictionary: aria2 takes the slash for a folder, transmission
makes it `_`, libtorrent drops it. Each seeder here is shown the file under the name it expects.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachefs import metainfo

LOOPBACK = "127.0.0.1"
READY_TIMEOUT = 30.0
"""Seconds in which a counterpart must be ready."""

ERIGONDB_TOML = b"step_size = 390625\nsteps_in_frozen_file = 256\n"
"""A published file; its info-hash under the name `erigondb.toml` begins with 49fd7968."""

_DEBIAN_PACKAGES = {"nginx": "nginx", "aria2c": "aria2", "transmission-daemon": "transmission-daemon"}
_POLL = 0.02
_PATTERNS = (
    "v1-{block}-headers.seg",
    "v1-{block}-bodies.seg",
    "v1-{block}-transactions.seg",
    "domain/v1-accounts.{step}.kv",
    "history/v1-accounts.{step}.v",
    "idx/v1-accounts.{step}.ef",
    "accessor/v1-accounts.{step}.vi",
    "caplin/v1-{block}-beaconblocks.seg",
)


class CounterpartFailed(AssertionError):
    """A counterpart did not start, died, or did not become ready; says what it printed."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a torrent seeder listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Seedbox:
    """A running `cachefs seed`: its peer, base URL (ends in `/`; "" when off), chain.toml and process."""

    peer: Peer | None
    url: str
    chain: Path
    process: subprocess.Popen[bytes]


def free_port() -> int:
    """A TCP port on loopback that nothing listens on now."""
    with socket.create_server((LOOPBACK, 0)) as server:
        port: int = server.getsockname()[1]
    return port


@contextmanager
def running(name: str, command: Sequence[str | Path], last_word: int = signal.SIGKILL) -> Iterator[Child]:
    """The child process `command`, ended with the signal `last_word` when the context is left."""
    if shutil.which(command[0]) is None:
        package = _DEBIAN_PACKAGES.get(str(command[0]), command[0])
        raise CounterpartFailed(f"{command[0]} is not installed: apt-get install {package}")
    with tempfile.TemporaryFile() as output:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        child = Child(name, process, output.fileno())
        try:
            yield child
        finally:
            child.end(last_word)


class Child:
    """A child process and what it printed."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], output: int) -> None:
        self.name = name
        self.process = process
        self._output = output

    def printed(self) -> str:
        size = os.fstat(self._output).st_size
        return os.pread(self._output, size, 0).decode("utf-8", "replace")

    def wait_until(self, what: str, condition: Callable[[], bool]) -> None:
        """Return when `condition()` is true; CounterpartFailed if the child dies or takes too long."""
        deadline = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < deadline:
            if condition():
                return
            with suppress(subprocess.TimeoutExpired):
                code = self.process.wait(_POLL)
                raise CounterpartFailed(f"{self.name} ended with {code} before {what}:\n{self.printed()}")
        raise CounterpartFailed(f"{self.name}: not {what} after {READY_TIMEOUT:.0f} s:\n{self.printed()}")

    def end(self, last_word: int) -> None:
        self.process.send_signal(last_word)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def accepts(port: int) -> bool:
    """Whether something accepts connections on this loopback port."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False


def seeds(port: int, info_hash: bytes) -> bool:
    """Whether a BitTorrent peer on this port answers a handshake for `info_hash` (BEP 3)."""
    hello = b"\x13BitTorrent protocol" + bytes(8) + info_hash
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1) as sock, sock.makefile("rb") as answer:
            sock.sendall(hello + b"-XX0001-readiness123")
            return answer.read(68)[28:48] == info_hash
    except OSError:
        return False


@contextmanager
def nginx(root: Path, *, location: str = "", port: int | None = None) -> Iterator[str]:
    """nginx serving `root`; its base URL, which ends in `/`.

    `location` is added to the `location /` block: `limit_rate 1m;`, `return 503;`, `max_ranges 0;` and the like.
    """
    port = port or free_port()
    with tempfile.TemporaryDirectory() as temporary:
        configuration = Path(temporary, "nginx.conf")
        configuration.write_text(_nginx_conf(Path(temporary), root, location, port))
        with running("nginx", ["nginx", "-p", temporary, "-e", "stderr", "-c", configuration]) as child:
            child.wait_until(f"accepting on port {port}", lambda: accepts(port))
            yield f"http://{LOOPBACK}:{port}/"


def _nginx_conf(temporary: Path, root: Path, location: str, port: int) -> str:
    paths = "".join(
        f"{kind}_temp_path {temporary / kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # Without a master there is one process to end. Workers of a master that is root could not read tmp_path.
    return f"""
daemon off; master_process off; pid {temporary / "nginx.pid"}; error_log stderr;
{"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 512; }}
http {{
    {paths}
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;
    server {{
        listen {LOOPBACK}:{port};
        location / {{ root "{root.absolute()}"; {location} }}
    }}
}}
"""


@contextmanager
def aria2_seeder(torrent: Path, directory: Path, *, limit: str = "0") -> Iterator[Peer]:
    """aria2 seeding the file of `torrent` that lies in `directory` under the torrent's own name.

    `limit` is the most it uploads, in bytes per second: "30K".
    """
    port, content = free_port(), metainfo.parse(torrent.read_bytes()).content
    options: dict[str, object] = {
        "dir": directory,
        "listen-port": port,
        "interface": LOOPBACK,
        "seed-ratio": "0.0",
        "bt-seed-unverified": "true",
        "check-integrity": "false",
        "file-allocation": "none",
        "max-upload-limit": limit,
    } | dict.fromkeys(("enable-dht", "enable-dht6", "bt-enable-lpd", "enable-peer-exchange"), "false")
    command: list[str | Path] = [
        "aria2c",
        "--no-conf",
        *(f"--{key}={value}" for key, value in options.items()),
        torrent,
    ]
    with running("aria2c", command) as child:
        child.wait_until("seeding", lambda: seeds(port, content.digest))
        yield Peer(LOOPBACK, port)


@contextmanager
def transmission_seeder(torrent: Path, directory: Path) -> Iterator[Peer]:
    """transmission seeding the file of `torrent` that lies in `directory` under the torrent's own name."""
    raw = torrent.read_bytes()
    meta, rpc_port, port = metainfo.parse(raw), free_port(), free_port()
    with tempfile.TemporaryDirectory() as temporary:
        shown = Path(temporary, "data", meta.name.replace("/", "_"))
        shown.parent.mkdir()
        shown.symlink_to((directory / meta.name).absolute())
        settings = Path(temporary, "settings.json")
        settings.write_text(json.dumps(_transmission_settings(rpc_port, port)))
        with running("transmission-daemon", ["transmission-daemon", "-f", "-g", temporary]) as child:
            rpc = _TransmissionRpc(rpc_port)
            child.wait_until("answering its RPC", rpc.answers)
            encoded = base64.b64encode(raw).decode()
            rpc.call("torrent-add", {"metainfo": encoded, "download-dir": str(shown.parent)})
            child.wait_until("seeding", lambda: rpc.seeding() and seeds(port, meta.content.digest))
            yield Peer(LOOPBACK, port)


def _transmission_settings(rpc_port: int, port: int) -> dict[str, object]:
    addresses = dict.fromkeys(("bind-address-ipv4", "rpc-bind-address"), LOOPBACK)
    off = dict.fromkeys(
        (
            "dht-enabled",
            "lpd-enabled",
            "pex-enabled",
            "utp-enabled",
            "port-forwarding-enabled",
            "rpc-authentication-required",
            "ratio-limit-enabled",
            "idle-seeding-limit-enabled",
        ),
        False,
    )
    return {**addresses, **off, "bind-address-ipv6": "::1", "encryption": 0, "rpc-port": rpc_port, "peer-port": port}


class _TransmissionRpc:
    """transmission's JSON RPC: a POST, and a session id that the first answer (409) tells."""

    _SEEDING = 6

    def __init__(self, port: int) -> None:
        self._url = f"http://{LOOPBACK}:{port}/transmission/rpc"
        self._session = ""

    def call(self, method: str, arguments: Mapping[str, object]) -> dict[str, Any]:
        body = json.dumps({"method": method, "arguments": arguments}).encode()
        request = urllib.request.Request(self._url, body, {"X-Transmission-Session-Id": self._session})
        with urllib.request.urlopen(request, timeout=5) as response:
            answer: dict[str, Any] = json.load(response)
        if answer["result"] != "success":
            raise CounterpartFailed(f"transmission: {method}: {answer['result']}")
        arguments_back: dict[str, Any] = answer["arguments"]
        return arguments_back

    def answers(self) -> bool:
        try:
            self.call("session-get", {})
        except urllib.error.HTTPError as error:
            self._session = error.headers.get("X-Transmission-Session-Id", "")
            error.close()
            return False
        except OSError:
            return False
        return True

    def seeding(self) -> bool:
        torrents = self.call("torrent-get", {"fields": ["status", "percentDone", "errorString"]})["torrents"]
        if torrents and torrents[0]["errorString"]:
            raise CounterpartFailed(f"transmission: {torrents[0]['errorString']}")
        return bool(torrents) and torrents[0]["status"] == self._SEEDING and torrents[0]["percentDone"] == 1


@contextmanager
def cachefs_seed(
    directory: Path, *options: str | Path, http: bool = True, torrent: bool = True, within: Sequence[str] = ()
) -> Iterator[Seedbox]:
    """`cachefs seed directory` in a process of its own, ready; `options` are added to its command line.

    `within` comes before it, to start it in another network.
    """
    sides = ("--listen", f"{LOOPBACK}:0" if torrent else "off", "--http", f"{LOOPBACK}:0" if http else "off")
    command = [*within, sys.executable, "-m", "cachefs", "seed", directory, *sides, *options]
    with running("cachefs seed", command, signal.SIGTERM) as child:
        child.wait_until("ready", lambda: "ready" in child.printed().splitlines())
        said = dict(line.partition(" ")[::2] for line in child.printed().splitlines())
        host, _, port = said["torrent"].rpartition(":") if torrent else ("", "", "0")
        peer = Peer(host, int(port)) if torrent else None
        yield Seedbox(peer, said.get("http", ""), Path(said["chain.toml"]), child.process)


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that lets clients connect and never says a word: the kernel accepts, nobody reads."""
    with socket.create_server((LOOPBACK, 0), backlog=128) as server:
        yield server.getsockname()[1]


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port that refuses connections, and that nobody else gets meanwhile: bound, but not listening."""
    with socket.socket() as held:
        held.bind((LOOPBACK, 0))
        yield held.getsockname()[1]


def open_sockets() -> int:
    """How many sockets this process has."""
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum("socket:" in str(path.readlink()) for path in links if path.is_symlink())


def make_snapshots(root: Path, *sizes: int, seed: int = 1) -> dict[str, Path]:
    """Files with Erigon's names below `root`, one of each size in bytes, and the published erigondb.toml.

    Returns name -> path, in the order of `sizes`, erigondb.toml last. The same seed gives the same bytes.
    """
    files = {_snapshot_name(number): size for number, size in enumerate(sizes)}
    made: dict[str, Path] = {}
    for name, size in files.items():
        made[name] = root / name
        made[name].parent.mkdir(parents=True, exist_ok=True)
        _fill(made[name], size, random.Random(f"{seed} {name}"))
    root.mkdir(parents=True, exist_ok=True)
    made["erigondb.toml"] = root / "erigondb.toml"
    made["erigondb.toml"].write_bytes(ERIGONDB_TOML)
    return made


def _snapshot_name(number: int) -> str:
    turn, kind = divmod(number, len(_PATTERNS))
    block, step = f"{turn * 500:06}-{(turn + 1) * 500:06}", f"{turn * 64}-{(turn + 1) * 64}"
    return _PATTERNS[kind].format(block=block, step=step)


def _fill(path: Path, size: int, source: random.Random) -> None:
    with path.open("wb") as file:
        for offset in range(0, size, 2**20):
            file.write(source.randbytes(min(2**20, size - offset)))


@contextmanager
def small_disk(mountpoint: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of `size` bytes at `mountpoint`, made if need be; what it gives resizes it."""

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", mountpoint], check=True)

    mountpoint.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mountpoint], check=True)
    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", mountpoint], check=True)


@contextmanager
def failing_disk(mountpoint: Path, size: int) -> Iterator[Callable[[], None]]:
    """An ext4 file system of `size` bytes at `mountpoint`; what it gives has it run into an error.

    It is read-only then, as a real disk's: the mount's flags don't tell, and what was open for writing is open still.
    """

    def fail() -> None:
        device = mountpoint.stat().st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").readlink().name
        Path("/sys/fs/ext4", name, "trigger_fs_error").write_text("1")

    mountpoint.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile() as image:
        image.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-F", image.name], check=True)
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", image.name, mountpoint], check=True)
        try:
            yield fail
        finally:
            subprocess.run(["umount", "-l", mountpoint], check=True)
