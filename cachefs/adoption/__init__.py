"""Files that are on this machine already: recognised by their hash, and taken over instead of being downloaded.

memory      which hash a file had when it was last looked at
hashing     what local files are, with all cores, compared with what the lock says of their names
takeover    what is the lock's goes into the store without being copied; the rest is reported and left alone
offline     `cachefs adopt DIR` into a data directory that nobody uses
online      the same while it is mounted
overrides   what a mount does at its start and at every reload with the files in `<data-dir>/snapshots/`
placing     `cachefs lock override NAME FILE`, the half of it that puts the file there
"""
