"""One fetcher made of all.

kinds        which way an item goes
router       torrent and web joined; download: one file, handed from one to the other
"""
