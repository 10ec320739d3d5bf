"""The writable view by itself, over directories that nothing has to serve; tests of a whole mount are elsewhere."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachefs import mountinfo
from cachefs.drivers import overlay
from cachefs.drivers.overlay import Owner, WritableView
from cachefs.errors import CachefsError, ConfigError

ROOT = Owner(0, 0)


@contextmanager
def covered(place: Path, owner: Owner = ROOT) -> Iterator[WritableView]:
    """A view over `place`/mnt/snapshots, which holds a file, with its upper layer in `place`/data."""
    lower = place / "mnt" / "snapshots"
    (lower / "history").mkdir(parents=True)
    (lower / "history" / "virtual").write_text("below")
    view = WritableView(lower, place / "data" / "snapshots", owner)
    view.mount()
    try:
        yield view
    finally:
        overlay.uncover(place / "mnt")


@pytest.mark.parametrize("name", ["plain", "with space", "back\\slash", "com,ma", "col:on", "grüße", "\\,:\\"])
def test_places_may_be_called_anything(tmp_path: Path, name: str) -> None:
    with covered(tmp_path / name) as view:
        assert mountinfo.overlays_in(tmp_path / name / "mnt") == [view.directory]
        (view.directory / "history" / "written").write_text("above")
        assert (view.directory / "history" / "virtual").read_text() == "below"
    assert [path.name for path in (view.directory / "history").iterdir()] == ["virtual"]
    assert [path.name for path in (view.upper / "history").iterdir()] == ["written"]


def test_a_file_of_which_only_the_mode_is_changed_is_whole_in_the_upper_layer(tmp_path: Path) -> None:
    with covered(tmp_path) as view:
        (view.directory / "history" / "virtual").chmod(0o600)
    assert (view.upper / "history" / "virtual").read_text() == "below"


def test_renaming_a_directory_that_holds_files_of_the_layer_below_is_refused(tmp_path: Path) -> None:
    with covered(tmp_path) as view, pytest.raises(OSError, match="Invalid cross-device link"):
        (view.directory / "history").rename(view.directory / "other")


def test_another_owner_may_create_but_not_touch_what_is_not_theirs(tmp_path: Path) -> None:
    with covered(tmp_path, Owner(65534, 65534)) as view:
        (view.directory / "lock").write_text("the lock")
        assert view.foreign
        tried = ["echo x >new", "mv new newer", "rm newer", "echo x >>lock", "rm -f lock", "mv lock other"]
        codes = [_as_nobody(view.directory, command) for command in tried]
        assert codes == [0, 0, 0, 2, 1, 1]
        assert (view.directory / "lock").read_text() == "the lock"


def _as_nobody(directory: Path, command: str) -> int:
    # The working directory is entered before rights are given up: what is above it may be closed to others.
    return subprocess.run(
        ["sh", "-c", command], cwd=directory, user=65534, group=65534, extra_groups=[], stderr=subprocess.DEVNULL,
        check=False,
    ).returncode  # fmt: skip


def test_after_a_refresh_names_are_those_of_the_layer_below_now(tmp_path: Path) -> None:
    with covered(tmp_path) as view:
        assert not (view.directory / "history" / "new").exists()
        below = tmp_path / "below"
        below.mkdir()
        # The directory below the view can be reached by a bind mount only.
        subprocess.run(["mount", "--bind", tmp_path / "mnt", below], check=True)
        try:
            (below / "snapshots" / "history" / "new").write_text("new")
        finally:
            subprocess.run(["umount", below], check=True)
        view.refresh()
        assert (view.directory / "history" / "new").read_text() == "new"
        (view.directory / "written").write_text("still writable")


def test_a_view_in_use_is_taken_away_all_the_same_and_the_log_says_from_whom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with covered(tmp_path) as view, (view.directory / "open").open("w") as file:
        with caplog.at_level(logging.WARNING):
            overlay.uncover(tmp_path / "mnt")
        assert mountinfo.overlays_in(tmp_path / "mnt") == []
        file.write("to the end")
    assert f"process {os.getpid()} (" in caplog.text
    assert (view.upper / "open").read_text() == "to the end"


def test_an_upper_layer_that_the_kernel_refuses_is_named_with_what_to_do(tmp_path: Path) -> None:
    with covered(tmp_path) as view:
        # An overlayfs can't be the upper layer of another.
        inner = WritableView(tmp_path, view.directory / "history", ROOT)
        with pytest.raises(CachefsError, match="put the data directory on a local ext4") as caught:
            inner.mount()
        assert str(inner.upper) in str(caught.value)


def test_a_view_that_the_kernel_would_make_read_only_is_an_error_and_not_left_there(tmp_path: Path) -> None:
    (tmp_path / "data" / overlay.WORK / "work" / "of" / "somebody" / "else").mkdir(parents=True)
    with pytest.raises(CachefsError, match="read-only"), covered(tmp_path):
        pass
    assert mountinfo.overlays_in(tmp_path / "mnt") == []


def test_a_view_inside_its_own_upper_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="upper layer"):
        WritableView(tmp_path / "data" / "snapshots" / "mnt" / "snapshots", tmp_path / "data" / "snapshots", ROOT)


def test_an_owner_is_a_user_by_name_or_number_with_a_group_or_their_own() -> None:
    assert Owner.parse("nobody") == Owner.parse("65534") == Owner(65534, 65534)
    assert Owner.parse("nobody:daemon") == Owner.parse("65534:1") == Owner(65534, 1)
    assert Owner.parse("4711:4712") == Owner(4711, 4712)
    assert Owner.parse("") == Owner(os.geteuid(), os.getegid())


@pytest.mark.parametrize("text", ["nobody-of-that-name", "4711", "nobody:no-such-group"])
def test_an_owner_who_is_nobody_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Owner.parse(text)
