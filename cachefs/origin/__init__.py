"""The seed box: serves a directory as torrent seeder and web seed.

How it works: `torrents` makes what is published, which is all that many a command wants; `serving` brings up `seeder`,
a libtorrent session, and `web`.
"""
