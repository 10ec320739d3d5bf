"""Other people's lists: what is written is read back, by us and by the programs whose formats they are."""

from __future__ import annotations

import hashlib
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cachefs.errors import CatalogError
from cachefs.formats import columns, metalink, playlists, pooch, sums
from cachefs.formats.listing import Listed
from tests.counterparts import nginx

SHA = hashlib.sha256(b"song").digest()
MD5 = hashlib.md5(b"song").digest()
NAMESPACE = 'xmlns="urn:ietf:params:xml:ns:metalink"'

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda name: not name.startswith("./")
)
urls = st.from_regex(r"https://[a-z]{1,9}\.example/[A-Za-z0-9._~%&=?-]{0,20}", fullmatch=True)
NO_XML = "\ufffe\uffff"
"""What a name may have, and XML 1.0 can't."""


@st.composite
def items(draw: st.DrawFn) -> Listed:
    size = draw(st.integers(1, 10**6))
    length = draw(st.sampled_from([2**18, 2**20]))
    listed = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(-(-size // length)))
    places = tuple(draw(st.lists(urls, min_size=1, max_size=3, unique=True)))
    name = draw(texts.filter(lambda name: not set(NO_XML) & set(name)))
    return Listed(name, places, size, {"sha256": SHA}, (length, listed))


ODD = [" begin", "end ", "u\u2028v.mp3", "u\u2029", "#1", " #1", "'\"$x"]


@given(st.lists(items()))
@example([Listed(name, ("https://e.org/",), 5, {"sha256": SHA}) for name in ODD])
def test_every_list_that_is_written_is_read_back(listed: list[Listed]) -> None:
    assert metalink.parse(metalink.dump(listed), "x") == listed
    assert sums.parse(sums.dump(listed), "x") == [Listed(item.name, hashes={"sha256": SHA}) for item in listed]
    assert pooch.parse(pooch.dump(listed), "x") == [
        Listed(item.name, item.urls[:1], hashes={"sha256": SHA}) for item in listed
    ]


@given(st.lists(st.tuples(texts, texts.map(str.strip), st.integers(-1, 10**6))))
@example([(name, name.strip(), 5) for name in ODD])
def test_a_playlist_that_is_written_is_read_back(written: list[tuple[str, str, int]]) -> None:
    entries = [playlists.Entry(f"/{location}", title, seconds) for location, title, seconds in written]
    assert playlists.parse(playlists.dump_m3u(entries).encode(), "x") == entries


def test_sha256sum_checks_what_is_exported_and_its_own_lists_are_read(tmp_path: Path) -> None:
    names = ["plain.ogg", "with blanks.mp3", "back\\slash.flac", "grüße.opus"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    listed = [Listed(name, hashes={"sha256": hashlib.sha256(name.encode()).digest()}) for name in names]
    (tmp_path / "SHA256SUMS").write_text(sums.dump(listed))
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=True)
    for options in ([], ["--tag"], ["--binary"]):
        own = subprocess.check_output(["sha256sum", *options, *names], cwd=tmp_path, text=True)
        assert sums.parse(own, "x") == listed
    md5 = subprocess.check_output(["md5sum", *names], cwd=tmp_path, text=True)
    assert sums.parse(md5, "x")[0].hashes == {"md5": hashlib.md5(b"plain.ogg").digest()}


def test_aria2_downloads_by_an_exported_metalink_and_checks_its_pieces(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "s&ng.flac").write_bytes(data)
    pieces = b"".join(hashlib.sha256(data[at : at + 2**18]).digest() for at in range(0, len(data), 2**18))
    with nginx(tmp_path / "site") as url:
        hashes = {"sha256": hashlib.sha256(data).digest()}
        item = Listed("song.flac", (f"{url}gone", f"{url}s&ng.flac"), len(data), hashes, (2**18, pieces))
        (tmp_path / "song.meta4").write_text(metalink.dump([item]))
        command = ["aria2c", "--no-conf", "--quiet", f"--dir={tmp_path / 'out'}", str(tmp_path / "song.meta4")]
        subprocess.run(command, check=True, timeout=30)
    assert (tmp_path / "out" / "song.flac").read_bytes() == data


@pytest.mark.parametrize("odd", NO_XML)
def test_a_name_that_no_metalink_can_hold_is_told_instead_of_written(odd: str) -> None:
    with pytest.raises(CatalogError, match=rf"u{ord(odd):x}' in its name or in a URL, which XML can't hold"):
        metalink.dump([Listed(f"a{odd}.mp3", ("https://e.org/",), 5, {"sha256": SHA})])


def test_a_metalink_is_read_as_the_standard_says() -> None:
    """RFC 5854: the lowest priority number first, unknown elements and foreign namespaces passed over."""
    text = f"""<?xml version="1.0" encoding="ISO-8859-1"?>
    <metalink {NAMESPACE} xmlns:x="urn:other"><published>2026-01-01T00:00:00Z</published>
    <x:file name="no"/><file name="dir/grüße.flac"><identity>Song</identity><size>4</size>
      <hash type="sha-1">{"0" * 40}</hash><hash type="sha-256">{SHA.hex()}</hash>
      <url location="de">https://last.example/</url><url priority="2">https://second.example/?a=1&amp;b=2</url>
      <url priority="1"> https://first.example/ </url><metaurl mediatype="torrent">https://t.example/</metaurl>
    </file></metalink>"""
    (item,) = metalink.parse(text, "x")
    assert item.name == "dir/grüße.flac"
    assert item.urls == ("https://first.example/", "https://second.example/?a=1&b=2", "https://last.example/")
    assert (item.size, item.hashes) == (4, {"sha256": SHA})


ENTITIES = f"""<!DOCTYPE metalink [<!ENTITY a "{"ha" * 50}">{
    "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 50}">' for n in range(8))
}]><metalink {NAMESPACE}><file name="&i;"/></metalink>"""
OUTSIDE = f'<!DOCTYPE m [<!ENTITY f SYSTEM "file:///etc/passwd">]><metalink {NAMESPACE}><file name="&f;"/></metalink>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ENTITIES, "DOCTYPE"),
        (OUTSIDE, "DOCTYPE"),
        (f"<metalink {NAMESPACE}><file name='a'><size>&f;</size></file></metalink>", "undefined entity"),
        (f"<metalink {NAMESPACE}>" + "<a>" * 100_000, "inside each other"),
        (f"<metalink {NAMESPACE}><file name='a'><url>" + "a" * 10**6, "characters"),
        ('<metalink xmlns="http://www.metalinker.org/" version="3.0"/>', "Metalink 4"),
        (f"<metalink {NAMESPACE}><file/></metalink>", "without a name"),
        (f"<metalink {NAMESPACE}><file name='a'><size>-4</size></file></metalink>", "size in bytes"),
        (f"<metalink {NAMESPACE}><file name='a'>\n<hash type='sha-256'>00</hash></file></metalink>", "x:2: .*64 hex"),
        (f"<metalink {NAMESPACE}>", "not XML"),
        ("", "not XML"),
    ],
)
def test_a_metalink_that_is_wrong_or_hostile_is_refused(text: str, said: str) -> None:
    with pytest.raises(CatalogError, match=said):
        metalink.parse(text, "x")


def test_a_piece_list_that_does_not_fit_the_size_is_none() -> None:
    piece = f"<pieces length='262144' type='sha-256'><hash>{SHA.hex()}</hash></pieces>"
    for size, expected in ((262144, (262144, SHA)), (262145, None), (0, None)):
        text = f"<metalink {NAMESPACE}><file name='a'>{piece}<size>{size}</size></file></metalink>"
        assert metalink.parse(text, "x")[0].pieces == expected


def test_of_several_piece_lists_the_one_by_sha256_is_taken() -> None:
    right = f"<pieces length='262144' type='sha-256'><hash>{SHA.hex()}</hash></pieces>"
    other = f"<pieces length='131072' type='sha-1'><hash>{'0' * 40}</hash><hash>{'0' * 40}</hash></pieces>"
    for lists in (right + other, other + right):
        text = f"<metalink {NAMESPACE}><file name='a'><size>262144</size>{lists}</file></metalink>"
        assert metalink.parse(text, "x")[0].pieces == (262144, SHA)


def test_a_pooch_registry_is_read_as_pooch_reads_it() -> None:
    text = f"""# comment
a.ogg {SHA.hex()}
"with blanks.mp3"   md5:{MD5.hex()}   https://example.org/b.mp3

c.flac sha1:{"0" * 40}
"""
    assert pooch.parse(text, "x") == [
        Listed("a.ogg", hashes={"sha256": SHA}),
        Listed("with blanks.mp3", ("https://example.org/b.mp3",), hashes={"md5": MD5}),
        Listed("c.flac"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"name,url,md5\nFast Car.mp3,https://e.org/f.mp3,{MD5.hex()}\n",
        f'"Fast Car.mp3","https://e.org/f.mp3","{MD5.hex().upper()}"\r\n\r\n',
        f"Fast Car.mp3\thttps://e.org/f.mp3\t{MD5.hex()}",
        f'[{{"name": "Fast Car.mp3", "url": "https://e.org/f.mp3", "md5": "{MD5.hex()}", "artist": "T. C."}}]',
        f'[["Fast Car.mp3", "https://e.org/f.mp3", "{MD5.hex()}"]]',
    ],
)
def test_an_older_record_list_is_read_in_all_its_forms(text: str) -> None:
    assert columns.parse(text, "x") == [Listed("Fast Car.mp3", ("https://e.org/f.mp3",), hashes={"md5": MD5})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n", "x:1: expected name, url, md5"),
        ("name,url,md5\na,https://e.org,12\n", "x:2: expected a SHA-256 or an MD5"),
        ('"a,b', "x:1: not CSV"),
        ("[1]", "'1': expected name, url, md5"),
        ('[["a", "b", "zz"]]', "'1': expected a SHA-256"),
        ("[", "x:1: not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_an_older_record_list_that_is_wrong_is_refused_by_place(text: str, said: str) -> None:
    with pytest.raises(CatalogError, match=said):
        columns.parse(text, "x")


@pytest.mark.parametrize("text", ["zz  name\n", "a\n", f"{SHA.hex()[:-1]}  a\n", f"MD5 (a) = {SHA.hex()}\n"])
def test_a_list_of_checksums_that_is_wrong_is_refused_by_line(text: str) -> None:
    with pytest.raises(CatalogError, match="x:2: expected"):
        sums.parse("# list\n" + text, "x")


@pytest.mark.parametrize("text", ["a\n", "a b c d\n", '"a b\n', "a sha256:12\n"])
def test_a_registry_that_is_wrong_is_refused_by_line(text: str) -> None:
    with pytest.raises(CatalogError, match="x:2:"):
        pooch.parse("# list\n" + text, "x")


@given(st.binary(max_size=200))
@example(b"//[Album]/x.mp3\nhttp://[::1/x.mp3\nfile://[/x")
def test_no_playlist_raises_anything_but_a_catalog_error(raw: bytes) -> None:
    with suppress(CatalogError):
        assert all(entry.location and entry.path(Path("/")) != Path() for entry in playlists.parse(raw, "x"))


@given(st.text(max_size=200))
def test_no_text_raises_anything_but_a_catalog_error(text: str) -> None:
    for parse in (sums.parse, pooch.parse, columns.parse, metalink.parse):
        with suppress(CatalogError):
            assert all(isinstance(item, Listed) for item in parse(text, "x"))


def test_playlists_of_all_kinds_are_read(tmp_path: Path) -> None:
    m3u = "#EXTM3U\r\n#EXTINF:123,Tracy - Fast Car\r\nmusic/Fast Car.mp3\r\n\r\n# comment\r\nhttps://e.org/b.ogg\r\n"
    pls = "[playlist]\nFile2=https://e.org/b.ogg\nfile1=music/Fast Car.mp3\nTitle1=Tracy - Fast Car\nLength1=123\n"
    expected = [playlists.Entry("music/Fast Car.mp3", "Tracy - Fast Car", 123), playlists.Entry("https://e.org/b.ogg")]
    assert playlists.parse(m3u.encode(), "x") == playlists.parse(pls.encode(), "x") == expected
    assert playlists.parse(b"\xef\xbb\xbf" + m3u.encode(), "x") == expected
    assert playlists.parse("Grüße.mp3".encode("latin-1"), "x") == [playlists.Entry("Grüße.mp3")]
    assert expected[0].path(tmp_path) == tmp_path / "music" / "Fast Car.mp3"
    assert expected[1].path(tmp_path) is None
    assert playlists.Entry("file:///mnt/a%20b.mp3").path(tmp_path) == Path("/mnt/a b.mp3")


def test_a_line_of_a_registry_that_would_take_minutes_to_take_apart_is_refused() -> None:
    with pytest.raises(CatalogError, match="1: a line of 65537 characters"):
        pooch.parse("'" + "a" * 65_536, "x")
