"""The sections of cachefs.toml: frozen dataclasses whose fields are the settings, with their defaults and readers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from cachefs.config.values import (
    CHAIN_NAME,
    Peer,
    Version,
    Wrong,
    as_age,
    as_chain_file,
    as_chain_name,
    as_choice,
    as_flag,
    as_list,
    as_listen,
    as_maybe_listen,
    as_number,
    as_owner,
    as_path,
    as_seconds,
    as_size,
    as_unavailable,
    as_version,
    as_whole,
    rclone_remote,
    show,
    tracker,
    web_seed,
)
from cachefs.errors import ConfigError

_DAY = 86400.0
_UNLIMITED = 2**53
_INT_MAX = 2**31 - 1
"""libtorrent's settings are ints of C, and it takes of a larger number what fits."""


@dataclass(frozen=True, slots=True)
class Mount:
    """[mount]: where things are.

    mountpoint: the directory to mount on; data_dir: where fetched bytes, locks and state are kept;
    allow_other: whether users other than the one who mounts may read (needs user_allow_other in /etc/fuse.conf);
    passthrough: whether the kernel reads complete files by itself (root only, Linux 6.9);
    writable: whether an overlayfs lets files be written beside those that are shown (root only); owner: USER or
    USER:GROUP to whom what it shows belongs, "" for who mounts.
    """

    mountpoint: Path | None = field(default=None, metadata={"read": as_path})
    data_dir: Path | None = field(default=None, metadata={"read": as_path})
    allow_other: bool = field(default=False, metadata={"read": as_flag})
    passthrough: bool = field(default=False, metadata={"read": as_flag})
    writable: bool = field(default=False, metadata={"read": as_flag})
    owner: str = field(default="", metadata={"read": as_owner})

    def __post_init__(self) -> None:
        if self.owner and not self.writable:
            raise ConfigError("owner", "is for a writable mount; give --writable too, or leave it off")

    def needed_data_dir(self) -> Path:
        """The data directory; ConfigError if it isn't given."""
        if self.data_dir is None:
            advice = "--data-dir DIR, or [mount] data_dir; it is where the bytes are kept"
            raise ConfigError("data_dir", f"not given: {advice}")
        return self.data_dir


@dataclass(frozen=True, slots=True)
class Snapshots:
    """[snapshots]: which names are shown.

    chain_toml: path or URL of the chain.toml that a first start makes its lock from, "" for none; chain: the chain's
    name, "" to take it from that file's; versions: "highest" of each block file's, or "all"; minimum_version and
    current_version: the bounds within which block files are shown, None for no bound.
    """

    chain_toml: str = field(default="", metadata={"read": as_chain_file})
    chain: str = field(default="", metadata={"read": as_chain_name})
    versions: str = field(default="highest", metadata={"read": as_choice("highest", "all")})
    minimum_version: Version | None = field(default=None, metadata={"read": as_version})
    current_version: Version | None = field(default=None, metadata={"read": as_version})

    def __post_init__(self) -> None:
        low, high = self.minimum_version, self.current_version
        if low is not None and high is not None and low > high:
            raise ConfigError("minimum_version", f"{low} is above current_version, {high}: nothing could be shown")

    @property
    def chain_name(self) -> str | None:
        """The name given, or else the stem of the file's name (`mainnet.toml`); None where that is just `chain`."""
        path = urlsplit(self.chain_toml).path if "://" in self.chain_toml else self.chain_toml
        stem = PurePosixPath(path).stem
        usable = stem != "chain" and CHAIN_NAME.fullmatch(stem)
        return self.chain or (stem if usable else None)


@dataclass(frozen=True, slots=True)
class Sources:
    """[sources]: where bytes come from.

    webseeds: base URLs of web seeds, without a slash at the end; peers: BitTorrent peers to connect to; trackers: URLs;
    torrent_dir: a directory with .torrent files; rclone_remotes: remotes of the operator's own rclone.conf below which
    the files lie under their names; carried_webseeds: whether web seeds that a .torrent names are used: "public" ones
    only (none at a private or loopback address), "any" or "none".
    """

    webseeds: tuple[str, ...] = field(default=(), metadata={"read": as_list(web_seed, "URLs")})
    peers: tuple[Peer, ...] = field(default=(), metadata={"read": as_list(Peer.parse, '"HOST:PORT"')})
    trackers: tuple[str, ...] = field(default=(), metadata={"read": as_list(tracker, "URLs")})
    torrent_dir: Path | None = field(default=None, metadata={"read": as_path})
    rclone_remotes: tuple[str, ...] = field(default=(), metadata={"read": as_list(rclone_remote, "remotes")})
    carried_webseeds: str = field(default="public", metadata={"read": as_choice("public", "any", "none")})


@dataclass(frozen=True, slots=True)
class Fetch:
    """[fetch]: who is asked for a block. Times are in seconds.

    peer_grace: how long peers of a file are looked for before web seeds are asked for it; stalled_after: how long
    readers wait for a torrent with peers before web seeds take over; slow_below: bytes per second under which a torrent
    is slow; hedging: whether a late block is asked from a second source; hedge_factor: how many times the usual wait is
    late; hedge_floor: never earlier than this; extra_traffic: the share of all traffic that such requests may add;
    direct: whether web seeds are asked directly, where no proxy stands before them, and not through rclone; requests:
    the most requests to one web seed or remote at a time; stall: after how long without a byte a request is given up;
    rebuild_limit: the most bytes an hour that are fetched to make the metadata of files whose .torrent nobody has.
    """

    peer_grace: float = field(default=1.0, metadata={"read": as_seconds(0, _DAY)})
    stalled_after: float = field(default=5.0, metadata={"read": as_seconds(0.1, _DAY)})
    slow_below: int = field(default=65_536, metadata={"read": as_whole(0, _UNLIMITED, "bytes per second")})
    hedging: bool = field(default=True, metadata={"read": as_flag})
    hedge_factor: float = field(default=4.0, metadata={"read": as_number(1, 100, "factor")})
    hedge_floor: float = field(default=0.25, metadata={"read": as_seconds(0.01, _DAY)})
    extra_traffic: float = field(default=0.1, metadata={"read": as_number(0, 1, "share")})
    direct: bool = field(default=True, metadata={"read": as_flag})
    requests: int = field(default=8, metadata={"read": as_whole(1, 64, "requests")})
    stall: float = field(default=10.0, metadata={"read": as_seconds(0.1, _DAY)})
    rebuild_limit: int = field(default=2**31, metadata={"read": as_whole(0, _UNLIMITED, "bytes")})


@dataclass(frozen=True, slots=True)
class Rclone:
    """[rclone]: the rclone child.

    enabled: whether it is run, where there is anything to ask it for; binary: which one, None for the first on PATH or
    beside our own Python that is new enough; config: the rclone.conf that rclone_remotes are in, None for rclone's own
    place.
    """

    enabled: bool = field(default=True, metadata={"read": as_flag})
    binary: Path | None = field(default=None, metadata={"read": as_path})
    config: Path | None = field(default=None, metadata={"read": as_path})


@dataclass(frozen=True, slots=True)
class Torrent:
    """[torrent]: the BitTorrent session.

    listen: the address it listens on, port 0 for any free one; seed: whether others are served; dht, lsd, upnp, natpmp,
    utp, pex: whether each of these protocols is used; download_limit, upload_limit: bytes per second, 0 for none;
    connections: the most peers at a time; active_torrents: the most torrents in the session at a time;
    idle_seconds: how long, in seconds, a torrent stays in it unread.
    """

    listen: Peer = field(default=Peer("0.0.0.0", 42069), metadata={"read": as_listen})
    seed: bool = field(default=True, metadata={"read": as_flag})
    dht: bool = field(default=True, metadata={"read": as_flag})
    lsd: bool = field(default=True, metadata={"read": as_flag})
    upnp: bool = field(default=True, metadata={"read": as_flag})
    natpmp: bool = field(default=True, metadata={"read": as_flag})
    utp: bool = field(default=True, metadata={"read": as_flag})
    pex: bool = field(default=True, metadata={"read": as_flag})
    download_limit: int = field(default=0, metadata={"read": as_whole(0, _INT_MAX, "bytes per second")})
    upload_limit: int = field(default=0, metadata={"read": as_whole(0, _INT_MAX, "bytes per second")})
    connections: int = field(default=500, metadata={"read": as_whole(1, 65535, "connections")})
    active_torrents: int = field(default=200, metadata={"read": as_whole(1, 100_000, "torrents")})
    idle_seconds: float = field(default=60.0, metadata={"read": as_seconds(0.1, _DAY)})


@dataclass(frozen=True, slots=True)
class Read:
    """[read]: how reads behave. Times are in seconds.

    deadline: how long a read waits before it fails; metadata_timeout: how long an open waits for a size;
    metadata_concurrency: how many .torrent files are asked for at a time; failure_memory: how long a failed block or
    size fails at once instead of being asked for again; readahead_blocks: the most blocks fetched ahead of a reader;
    max_waiting: the most reads that wait at a time, more are refused; on_unavailable: what a read gets whose bytes
    nobody delivers, for all files or by pattern of `catalogue/name`, the first that fits: "wait" for ever, an error at
    the "deadline", or "fail-fast", an error when nothing has come for fail_fast_after; speculation: the most bytes that
    are read ahead of one process and not used yet, over all its files.
    """

    deadline: float = field(default=60.0, metadata={"read": as_seconds(0.1, _DAY)})
    metadata_timeout: float = field(default=15.0, metadata={"read": as_seconds(0.1, _DAY)})
    metadata_concurrency: int = field(default=64, metadata={"read": as_whole(1, 1024, "requests")})
    failure_memory: float = field(default=30.0, metadata={"read": as_seconds(0, _DAY)})
    readahead_blocks: int = field(default=64, metadata={"read": as_whole(0, 4096, "blocks")})
    max_waiting: int = field(default=400, metadata={"read": as_whole(1, 65536, "reads")})
    on_unavailable: tuple[tuple[str, str], ...] = field(default=(("*", "deadline"),), metadata={"read": as_unavailable})
    fail_fast_after: float = field(default=2.0, metadata={"read": as_seconds(0.1, _DAY)})
    speculation: int = field(default=2**29, metadata={"read": as_size})


@dataclass(frozen=True, slots=True)
class CatalogueLimits:
    """[limits.records], [limits.snapshots]: how much a catalogue may keep; as in [limits]."""

    size: int = field(default=0, metadata={"read": as_size})
    age: float = field(default=0.0, metadata={"read": as_age})
    count: int = field(default=0, metadata={"read": as_whole(0, _UNLIMITED, "files")})


def _of_catalogue(value: object, base: Path) -> CatalogueLimits:
    if isinstance(value, CatalogueLimits):
        return value
    readers = {item.name: item.metadata["read"] for item in fields(CatalogueLimits)}
    if not isinstance(value, dict) or not value.keys() <= readers.keys():
        raise Wrong(f"expected a table of {', '.join(readers)}, got {show(value)}")
    read = {}
    for key, given in value.items():
        try:
            read[key] = readers[key](given, base)
        except Wrong as error:
            raise Wrong(f"{key}: {error}") from None
    return CatalogueLimits(**read)


@dataclass(frozen=True, slots=True)
class Limits:
    """[limits]: how much the data directory may keep. 0 is no limit.

    size: bytes on disk, of everything in its store; free_space: bytes to leave free on its file system; age: for how
    many seconds content is kept after it was last used; count: of how many files content is kept. records and
    snapshots: the same for one catalogue.
    """

    size: int = field(default=0, metadata={"read": as_size})
    free_space: int = field(default=0, metadata={"read": as_size})
    age: float = field(default=0.0, metadata={"read": as_age})
    count: int = field(default=0, metadata={"read": as_whole(0, _UNLIMITED, "files")})
    records: CatalogueLimits = field(default=CatalogueLimits(), metadata={"read": _of_catalogue})
    snapshots: CatalogueLimits = field(default=CatalogueLimits(), metadata={"read": _of_catalogue})


@dataclass(frozen=True, slots=True)
class Scrub:
    """[scrub]: reading again what is held.

    interval: after how many seconds an object is read from the disk again, 0 for never; rate: bytes per second, 0 for
    no limit.
    """

    interval: float = field(default=30 * _DAY, metadata={"read": as_seconds(0, 3650 * _DAY)})
    rate: int = field(default=20_000_000, metadata={"read": as_size})


@dataclass(frozen=True, slots=True)
class Status:
    """[status]: who may look at a mount without a command.

    http: the address at which the status is a web page, JSON and metrics, None for no address, port 0 for any free one.
    """

    http: Peer | None = field(default=None, metadata={"read": as_maybe_listen})
