"""What some bytes are, by their first ones: so that an error page is not etched as a song.

How it works: a table of magic bytes gives a media type. It decides over what the server says, for servers often say
application/octet-stream. A name that ends like music and bytes that are plainly something else don't go together,
and neither do such a name, bytes that no table knows, and a server that calls them text.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from cachefs.catalog.record import MEDIA_TYPE

_MAGIC = (
    (0, rb"ID3", "audio/mpeg"),
    (0, rb"\xff[\xf0\xf1\xf8\xf9]", "audio/aac"),
    (0, rb"\xff[\xe2-\xef\xf2-\xf7\xfa-\xff]", "audio/mpeg"),
    (0, rb"fLaC", "audio/flac"),
    (0, rb"OggS", "audio/ogg"),
    (0, rb"RIFF....WAVE", "audio/wav"),
    (0, rb"RF64....WAVE", "audio/wav"),
    (0, rb"FORM....AIF[FC]", "audio/aiff"),
    (0, rb"MAC ", "audio/x-ape"),
    (0, rb"wvpk", "audio/x-wavpack"),
    (0, rb"MThd", "audio/midi"),
    (0, rb"\.snd", "audio/basic"),
    (4, rb"ftypM4[ABP]", "audio/mp4"),
    (4, rb"ftyp", "video/mp4"),
    (0, rb"\x1a\x45\xdf\xa3", "video/webm"),
    (0, rb"#EXTM3U", "audio/mpegurl"),
    (0, rb"(?:\xef\xbb\xbf)?\s*<(?i:!doctype html|html|head|body)", "text/html"),
    (0, rb"(?:\xef\xbb\xbf)?\s*<\?xml", "application/xml"),
    (0, rb"%PDF-", "application/pdf"),
    (0, rb"\x89PNG\r\n", "image/png"),
    (0, rb"\xff\xd8\xff[\xdb\xe0-\xef]", "image/jpeg"),
    (0, rb"GIF8", "image/gif"),
    (0, rb"PK\x03\x04", "application/zip"),
    (0, rb"\x1f\x8b\x08", "application/gzip"),
    (0, rb"\s*\{\s*\"", "application/json"),
)
_PATTERNS = [(offset, re.compile(magic, re.DOTALL), media) for offset, magic, media in _MAGIC]
_MUSIC = {
    ".aac": "audio/aac", ".aif": "audio/aiff", ".aiff": "audio/aiff", ".ape": "audio/x-ape", ".flac": "audio/flac",
    ".m4a": "audio/mp4", ".m4b": "audio/mp4", ".mka": "audio/x-matroska", ".mp2": "audio/mpeg", ".mp3": "audio/mpeg",
    ".oga": "audio/ogg", ".ogg": "audio/ogg", ".opus": "audio/ogg", ".wav": "audio/wav", ".wv": "audio/x-wavpack",
}  # fmt: skip
_TEXT = ("text/", "application/json", "application/xml", "application/xhtml")


def sniff(head: bytes) -> str:
    """The media type of bytes that begin with `head`; "" if no table knows them."""
    # A picture and an MPEG frame may begin with the same two bytes: the longer magic decides.
    found = [(len(m[0]), media) for at, magic, media in _PATTERNS if (m := magic.match(head, at))]
    return max(found)[1] if found else ""


def objection(name: str, head: bytes, declared: str) -> str:
    """Why these bytes can't be what the name says; "" if nothing speaks against it. `declared` is the server's word."""
    if PurePosixPath(name.lower()).suffix not in _MUSIC:
        return ""
    found = sniff(head)
    if found and not found.startswith(("audio/", "video/")):
        return f"the bytes are {found}, and {name!r} is a name for music"
    if not found and declared.startswith(_TEXT):
        return f"the server says {declared}, the bytes are no music that is known, and {name!r} is a name for music"
    return ""


def media_type(name: str, head: bytes, declared: str) -> str:
    """The record's media type: by the bytes, or else by the server's word, or else by the name; "" if none tells."""
    tells = MEDIA_TYPE.fullmatch(declared) and declared not in ("application/octet-stream", "binary/octet-stream")
    return sniff(head) or (declared if tells else "") or _MUSIC.get(PurePosixPath(name.lower()).suffix, "")
