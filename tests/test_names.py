"""Which names may be shown: whatever is hostile, or can't be an entry of a directory, is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.catalog.names import MAX_COMPONENT, MAX_NAME, BadName, check_name, check_names


@pytest.mark.parametrize(
    "name",
    [
        "v1-000000-000500-bodies.seg",
        "history/v1-accounts.0-64.v",
        "salt-blocks.txt",
        "...",
        ".hidden",
        "a/..b/c..",
        "a:b-c",
        "Don't Stop.mp3",
        "ünïcode/名前",
        "x" * MAX_COMPONENT,
        "/".join(["x" * 127] * 8),
    ],
)
def test_ordinary_names_are_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("-rf", "'-'"),
        (":sftp:x", "':'"),
        ("a//b", "part"),
        ("a/", "part"),
        (".", "part"),
        ("..", "part"),
        ("../a", "part"),
        ("a/../b", "part"),
        ("a/..", "part"),
        ("a/./b", "part"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x7fb", "control"),
        ("a\x9bb", "control"),
        ("a\\b", "backslash"),
        ("a\udc80b", "Unicode"),
        ("x" * (MAX_COMPONENT + 1), "part longer"),
        ("é" * 128, "part longer"),
        ("/".join(["x" * 127] * 9), "1151 bytes"),
    ],
)
def test_hostile_names_are_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(BadName, match=why):
        check_name(name)


@given(st.text())
def test_a_name_that_is_taken_stays_below_its_folder(name: str) -> None:
    try:
        check_name(name)
    except BadName:
        return
    parts = name.split("/")
    assert not {"", ".", ".."} & set(parts)
    assert len(name.encode()) <= MAX_NAME
    assert max(len(part.encode()) for part in parts) <= MAX_COMPONENT


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(BadName, match="twice"):
        check_names(["a", "b", "a"])


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b/c/d", "a/b"], ["x", "a/b/c", "a/b/d", "a"]])
def test_a_file_where_another_name_has_a_directory_is_refused(names: list[str]) -> None:
    for order in (names, names[::-1]):
        with pytest.raises(BadName, match="directory"):
            check_names(order)


def test_names_that_only_begin_alike_do_not_clash() -> None:
    check_names(["a", "ab/c", "a.d/e", "ab/cd", "b/a"])


@given(st.lists(st.text("ab/", min_size=1, max_size=5), max_size=6))
def test_names_are_taken_exactly_when_a_directory_could_hold_them(names: list[str]) -> None:
    whole = all("" not in name.split("/") for name in names)
    clash = any(other.startswith(f"{name}/") for name in names for other in names)
    expected = whole and not clash and len(set(names)) == len(names)
    try:
        check_names(names)
    except BadName:
        assert not expected
    else:
        assert expected
