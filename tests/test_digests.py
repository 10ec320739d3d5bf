"""The checksum header: RFC 9530's vector, the older forms, and what must not be taken for a checksum of the whole."""

from __future__ import annotations

import base64
import hashlib

import pytest

from cachefs.fetch.http.digests import Declared, declared

BODY = b'{"hello": "world"}\n'
VECTOR = "RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg="
SHA256 = hashlib.sha256(BODY).digest()
MD5 = base64.b64encode(hashlib.md5(BODY, usedforsecurity=False).digest()).decode()


def test_the_vector_of_rfc_9530_is_read() -> None:
    assert declared({"repr-digest": f"sha-256=:{VECTOR}:"}).sha256 == SHA256


@pytest.mark.parametrize(
    ("headers", "sha256", "md5", "header"),
    [
        ({"repr-digest": f"sha-512=:AAAA:, sha-256=:{VECTOR}:"}, True, False, "Repr-Digest"),
        ({"repr-digest": f"sha-256=:{VECTOR}:;q=1,md5=:{MD5}:"}, True, True, "Repr-Digest"),
        ({"digest": f"SHA-256={VECTOR}"}, True, False, "Digest"),
        ({"digest": f"md5={MD5},sha-256={VECTOR}"}, True, True, "Digest"),
        ({"x-amz-checksum-sha256": VECTOR}, True, False, "x-amz-checksum-sha256"),
        ({"x-goog-hash": f"crc32c=AAAAAA==,md5={MD5}"}, False, True, "x-goog-hash"),
        ({"repr-digest": f"sha-256=:{VECTOR}:", "digest": "SHA-256=AAAA"}, True, False, "Repr-Digest"),
    ],
)
def test_every_form_is_read(headers: dict[str, str], sha256: bool, md5: bool, header: str) -> None:
    told = declared(headers)
    assert told.sha256 == (SHA256 if sha256 else b"")
    assert bool(told.md5) == md5
    assert told.header == header


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-digest": f"sha-256=:{VECTOR}:"},
        {"etag": f'"{VECTOR}"'},
        {"repr-digest": f"sha-256={VECTOR}"},
        {"repr-digest": f"sha-256=:{VECTOR}:, ="},
        {"repr-digest": "sha-256=:AAAA:"},
        {"repr-digest": f"sha-512=:{VECTOR}:"},
        {"digest": f"SHA-256={VECTOR[:-2]}"},
        {"x-amz-checksum-sha256": f"{VECTOR}-3"},
        {"x-amz-checksum-sha256": VECTOR, "x-amz-checksum-type": "COMPOSITE"},
        {"content-md5": MD5},
    ],
)
def test_what_is_malformed_or_about_something_else_says_nothing(headers: dict[str, str]) -> None:
    assert declared(headers) == Declared()
