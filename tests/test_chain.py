"""chain.toml: what is published comes through unchanged, and a damaged list is refused with its place."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.catalog.chain import format_chain, load_chain, parse_chain
from cachefs.content import ContentId
from cachefs.errors import CatalogError

HASH = "0123456789abcdef0123456789abcdef01234567"
PUBLISHED = f"""\
'accessor/v1.1-code.0-64.vi' = '{HASH}'
'salt-blocks.txt' = '{"a" * 40}'
'v1.1-000000-000500-bodies.seg' = '{"b" * 40}'

"""

names = st.text("abv01.-_/é", min_size=1, max_size=12).filter(
    lambda name: name[0] != "-" and not {"", ".", ".."} & set(name.split("/"))
)
ids = st.binary(min_size=20, max_size=20).map(lambda digest: ContentId("btih", digest))


def without_clashes(entries: dict[str, ContentId]) -> bool:
    return not any(other.startswith(f"{name}/") for name in entries for other in entries)


chains = st.dictionaries(names, ids, min_size=1, max_size=8).filter(without_clashes)


def refusal(text: str) -> CatalogError:
    with pytest.raises(CatalogError) as caught:
        parse_chain(text, Path("chain.toml"))
    return caught.value


def test_the_published_form_is_read_and_written_byte_for_byte() -> None:
    entries = parse_chain(PUBLISHED, "chain.toml")
    assert entries["accessor/v1.1-code.0-64.vi"] == ContentId.btih(HASH)
    assert format_chain(dict(reversed(entries.items()))) == PUBLISHED


@given(chains)
def test_what_was_written_is_read_again(entries: dict[str, ContentId]) -> None:
    text = format_chain(entries)
    assert parse_chain(text, "chain.toml") == entries
    assert format_chain(parse_chain(text, "chain.toml")) == text


@given(st.text() | st.text("ab'\"= \n[]{}#.,0\\u"))
def test_no_text_raises_anything_but_a_catalogue_error(text: str) -> None:
    with suppress(CatalogError):
        assert parse_chain(text, "chain.toml")


@given(st.data())
def test_a_damaged_list_raises_nothing_but_a_catalogue_error(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(PUBLISHED)))
    until = data.draw(st.integers(at, min(at + 5, len(PUBLISHED))))
    damaged = PUBLISHED[:at] + data.draw(st.text(max_size=3)) + PUBLISHED[until:]
    with suppress(CatalogError):
        assert parse_chain(damaged, "chain.toml")


@pytest.mark.parametrize("text", ["[" * 5000, "a = " + "[" * 5000, "a." * 5000 + "b = 1", "a = " + "9" * 5000])
def test_extreme_nesting_and_numbers_are_refused(text: str) -> None:
    refusal(text)


def test_a_syntax_error_names_its_line() -> None:
    error = refusal(f"'a' = '{HASH}'\n'b' = = 'x'\n")
    assert error.line == 2
    assert "chain.toml:2: not TOML" in str(error)


def test_a_name_listed_twice_is_refused_with_both_lines() -> None:
    error = refusal(f"'a' = '{HASH}'\n'b' = '{HASH}'\n'a' = '{HASH}'\n")
    assert (error.line, error.key) == (3, "a")
    assert "first in line 1" in str(error)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("'abc'", "40 hex digits, not 3"),
        (f"'{HASH.upper()}'", "lower case"),
        (f"'{'g' * 40}'", "not a hash"),
        (f"'{HASH}0'", "not 41"),
        ("'" + "ab " * 13 + "a'", "not a hash"),
        ("5", "must be a string, not int"),
        ("true", "must be a string, not bool"),
        ("[]", "must be a string, not list"),
        ("{}", "nested table"),
    ],
)
def test_a_bad_value_is_refused_with_line_and_name(value: str, why: str) -> None:
    error = refusal(f"'good' = '{HASH}'\n\n'bad.seg' = {value}\n")
    assert (error.line, error.key) == (3, "bad.seg")
    assert why in str(error)


@pytest.mark.parametrize("text", [f"[folder]\na = '{HASH}'\n", f"folder.a = '{HASH}'\n"])
def test_a_nested_table_is_refused_with_its_line(text: str) -> None:
    error = refusal(f"'good' = '{HASH}'\n{text}")
    assert (error.line, error.key) == (2, "folder")
    assert "nested table" in str(error)


@pytest.mark.parametrize("name", ["../up", "/abs", "-opt", "a//b", "a\\\\b", "a\\u0000b", "it's"])
def test_a_bad_name_is_refused(name: str) -> None:
    error = refusal(f"\"good\" = '{HASH}'\n\"{name}\" = '{HASH}'\n")
    assert error.key is not None


def test_a_file_that_is_also_a_directory_is_refused() -> None:
    error = refusal(f"'a' = '{HASH}'\n'a/b' = '{HASH}'\n")
    assert (error.line, error.key) == (1, "a")


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n"])
def test_a_list_that_names_nothing_is_refused(text: str) -> None:
    assert "names nothing" in str(refusal(text))


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"it's": ContentId.btih(HASH)},
        {"../a": ContentId.btih(HASH)},
        {"a": ContentId.btih(HASH), "a/b": ContentId.btih(HASH)},
        {"a": ContentId("sha256", bytes(32))},
    ],
)
def test_what_could_not_be_read_again_is_not_written(entries: dict[str, ContentId]) -> None:
    with pytest.raises(CatalogError):
        format_chain(entries)


def test_a_file_that_is_missing_or_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "chain.toml"
    with pytest.raises(CatalogError, match="can't be read: No such file"):
        load_chain(path)
    path.write_bytes(b"# fine\n'\xff' = ''\n")
    with pytest.raises(CatalogError, match="not UTF-8") as caught:
        load_chain(path)
    assert (caught.value.path, caught.value.line) == (path, 2)
    path.write_text(PUBLISHED)
    assert len(load_chain(path)) == 3


@pytest.mark.parametrize("line", ["'{}' = 'zz'", "'{0}' = 'zz'\n'{0}' = 'zz'"])
def test_of_a_name_of_a_million_characters_the_first_are_told(line: str) -> None:
    with pytest.raises(CatalogError) as caught:
        parse_chain(line.format("n" * 10**6) + "\n", "chain.toml")
    assert len(str(caught.value)) < 2000
