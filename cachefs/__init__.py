"""cachefs: a mounted, read-only, content-addressed file system that fetches on first read.

The packages, from the ground up (imports go down only; `make check` holds it):

    errors, content, metainfo, config    words and formats; no I/O beyond reading a configuration file
    catalog/                             names: chain.toml, snapshot-lock.json, records-lock.toml, the tree of the mount
    store/                               bytes at rest: sparse files, durable bitmaps, limits, SQLite
    fetch/                               bytes in flight: libtorrent, HTTP, rclone, the policy, metadata
    window, flow, cache, manifests       reads through: joins the store and the fetchers
    locks, reload, adoption/             the operator's day: locks that change, files that are here already
    keeper, prefetch, upkeep             … pins, eviction, garbage; verifying and mending
    records/, formats/, playhead/        the record cache: etching, playing, lists, play time in sync
    shelf, filesystem, drivers/          the mount's operations, and the kernel's side of them
    sourcing, mount, control/            the running daemon, put together
    origin/, cli/                        the seed box, and the commands
"""

__version__ = "0.1.0"
