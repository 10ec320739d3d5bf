"""https, the way records come by default: a trusted certificate is taken, any other is an error that says so."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trio

from cachefs.errors import UrlFailed
from cachefs.fetch.http.client import Rules, WebClient
from tests.records_kit import make_certificate, song, web

SONG = song(1, 100_000)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def fetched(url: str, trusted: Path | None) -> bytes:
    async def main() -> bytes:
        tls = ssl.create_default_context(cafile=str(trusted) if trusted else None)
        async with WebClient(Rules(allow_private=True), tls) as client, client.get(url, {}) as answer:
            data, buffer = b"", memoryview(bytearray(len(SONG)))
            while count := await answer.read_some(buffer):
                data += buffer[:count]
            return data

    return trio.run(main)


def test_https_with_a_trusted_certificate(certificate: Path) -> None:
    with web(certificate) as host:
        assert fetched(host.put("song.mp3", SONG), certificate) == SONG


def test_a_certificate_that_nobody_vouches_for_is_refused_and_named_as_the_reason(certificate: Path) -> None:
    with web(certificate) as host:
        with pytest.raises(UrlFailed, match="certificate verify failed"):
            fetched(host.put("song.mp3", SONG), None)
        assert host.asked == []


def test_a_redirect_from_https_to_http_needs_leave_as_well(certificate: Path) -> None:
    with web(certificate) as host, web() as plain:
        url = host.put("song.mp3", b"", status=302, headers={"Location": plain.put("song.mp3", SONG)})
        with pytest.raises(UrlFailed, match="allow_http"):
            fetched(url, certificate)
        assert plain.asked == []
