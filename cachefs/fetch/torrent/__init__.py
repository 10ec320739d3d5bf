"""A file from its peers. Only here, and in the seed box, anybody speaks with libtorrent.

fetcher      all torrents: added when first needed, taken away when idle; whole: one fetched from end to end
magnets      metadata from peers; hosts: the addresses of those that the settings name
download     one torrent: wishes, what is wanted of it; pieces, on their way to the file; extents, what was written
session      libtorrent's settings and alerts; nodelay: an option that it doesn't set
"""
