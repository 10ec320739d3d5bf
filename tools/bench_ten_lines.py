"""The plainest yardstick: what anybody's first ten lines with libtorrent do, with all of its defaults.

It prints how many seconds that took. bench_reference.py is the strict one: the same download, told to hurry.

Usage: bench_ten_lines.py TORRENT DIRECTORY (--peer HOST:PORT | --url URL)
"""

import sys
import time

import libtorrent as lt

torrent, directory, kind, source = sys.argv[1:]
started = time.perf_counter()
session = lt.session({"listen_interfaces": "127.0.0.1:0"})
parameters = lt.load_torrent_file(torrent)
parameters.save_path = directory
parameters.url_seeds = [source] if kind == "--url" else []
handle = session.add_torrent(parameters)
if kind == "--peer":
    handle.connect_peer((source.rpartition(":")[0], int(source.rpartition(":")[2])))
while not handle.status().is_seeding:
    time.sleep(0.02)
sys.stdout.write(f"{time.perf_counter() - started}\n")
