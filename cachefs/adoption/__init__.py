"""Files that are on this machine already: recognised by their hash, and taken over instead of being downloaded.

memory      which hash a file had when it was last looked at
hashing     what local files are, with all cores, compared with what the lock says of their names
takeover    what is the lock's goes into the store without being copied; the rest is reported and left alone

`cachefs adopt DIR` does that with a whole directory, and every mount with `<data-dir>/snapshots/`, which is where an
override is put.
"""
