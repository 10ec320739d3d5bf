"""Bytes in flight: where content and its metadata are fetched from, and how.

base         what a fetcher is; kinds: which one an item gets; sources: who gave what; outage: when nobody does
router       snapshots, by torrent and from the web: routed_download, by the rules of policy
torrent      libtorrent: torrent_session, torrent_download with its torrent_wishes and torrent_pieces, torrent_whole
remote       web seeds and rclone remotes: remotes, remote_download, remote_judge, health
direct       web seeds without rclone; rclone_child, rclone_rc, diagnosis: the way through it
metadata     sizes and hashes: metasearch asks peers, web seeds (webmeta), or has a whole file hashed (rebuild)
ranges       records, block by block: range_request
downloads    records, whole: strategies of attempts by providers into a receiver; digests: what servers declare
web          asking with care; busy: hosts that ask to be left alone
reception    receiving a body in a thread; connections, wire, addresses, nodelay, body: HTTP and below
extents      which parts of a file were written
"""
