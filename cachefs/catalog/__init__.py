"""Names: which ones there are, what content each stands for, and the tree the mount shows.

names        which names are accepted at all
files        reading and replacing the small text files below
chain        chain.toml, the published list of a chain's snapshots
snapshots    snapshot-lock.json, the mount's own copy of that list; which versions are shown
difference   what changes from one lock to another; history: the locks that were in use before
records      records-lock.toml; record: one of them
tree         directories and files with inode numbers, made from the catalogues
"""
