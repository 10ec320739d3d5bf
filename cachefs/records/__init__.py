"""The record cache: records are etched once and played everywhere.

music_cache  the two requests, by URL and by URL and checksum: a checksum or an error
etching      a URL becomes a record: downloaded, judged, kept, written
pieces       piece lists, which let a record play before all of it is here
media        what bytes are, by their first ones
naming       which records a word means: a name, a URL, a path in the mount, a folder, a playlist
lists        other people's lists, in and out
shelf        the records as the mount shows them
last_copies  records that are about to be evicted and could not be had again
incoming     temporary files, and one download for all who ask at once; arriving: and the room for them
mounting     the parts of a mount that shows records
"""

from cachefs.records.etching import Etched, EtchRefused, Order, etch
from cachefs.records.music_cache import MusicCache, Play

__all__ = ["EtchRefused", "Etched", "MusicCache", "Order", "Play", "etch"]
