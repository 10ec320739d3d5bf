"""cachefs: a mounted, read-only, content-addressed file system that fetches on first read.

The packages, from the ground up (imports go down only; `make check` holds it):

    errors, content, metainfo, config    words and formats; no I/O beyond reading a configuration file
    catalog/                             names: chain.toml, snapshot-lock.json, the tree of the mount
    store/                               bytes at rest: sparse files, durable bitmaps, SQLite
    fetch/                               bytes in flight: libtorrent, metadata
    window, flow, cache, manifests       reads through: joins the store and the fetchers
    records/                             the record cache: etching, playing, piece lists
    shelf, filesystem, drivers/          the mount's operations, and the kernel's side of them
    control/, mount, origin, cli/        the running daemon and the commands
"""

__version__ = "0.1.0"
