"""Promise 20 of the record cache: configurable limits and expiry, shown through a mount of records."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.counterparts import nginx
from tests.mount_kit import Mount, cachefs, mounted, read_error
from tests.player_kit import cold
from tests.records_kit import OPEN_TOML, PIECE, song

NAMES = [f"song {number}.mp3" for number in range(5)]
LENGTH = 4 * PIECE


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site")
    for number, name in enumerate(NAMES):
        (root / name).write_bytes(song(number, LENGTH))
    return root


def etched(place: Path, url: str) -> None:
    cold(place, {name: url + name.replace(" ", "%20") for name in NAMES})


def taken(mount: Mount) -> int:
    """What the contents take on disk, as du counts."""
    return sum(path.stat().st_blocks * 512 for path in mount.data_dir.glob("store/sha256/*/*/data"))


def test_20_a_size_limit_holds_while_all_records_are_played_and_the_last_one_stays(site: Path, tmp_path: Path) -> None:
    limit = 2 * LENGTH + 2 * PIECE
    with nginx(site) as url:
        etched(tmp_path, url)
        with mounted(tmp_path, settings=f"{OPEN_TOML}[limits]\nsize = {limit}\n") as mount:
            for name in (*NAMES, *NAMES):
                assert (mount.mountpoint / "records" / name).read_bytes() == (site / name).read_bytes()
                assert taken(mount) <= limit + PIECE
    with mounted(tmp_path, settings=OPEN_TOML) as mount:
        kept = [name for name in NAMES if not read_error(mount.mountpoint / "records" / name, size=LENGTH)]
        assert NAMES[-1] in kept
        assert len(kept) <= 2


def test_20_what_nobody_played_for_the_age_expires(site: Path, tmp_path: Path) -> None:
    with nginx(site) as url:
        etched(tmp_path, url)
        with mounted(tmp_path, settings=OPEN_TOML) as mount:
            for name in NAMES[:2]:
                (mount.mountpoint / "records" / name).read_bytes()
            mount.wait_for("complete", lambda now: now["store"]["complete"] == 2)
        with mounted(tmp_path, settings=f'{OPEN_TOML}[limits]\nage = "90d"\n') as mount:
            assert taken(mount) >= 2 * LENGTH
        with mounted(tmp_path, settings=f"{OPEN_TOML}[limits]\nage = 0.1\n") as mount:
            mount.wait_for("expired", lambda now: taken(mount) == 0)
            assert (mount.mountpoint / "records" / NAMES[0]).read_bytes() == (site / NAMES[0]).read_bytes()


@pytest.mark.parametrize("limits", ["count = 2", f"size = {2 * LENGTH + PIECE}", "age = 0.1"])
def test_20_records_keep_to_limits_of_their_own(site: Path, tmp_path: Path, limits: str) -> None:
    with nginx(site) as url:
        etched(tmp_path, url)
        with mounted(tmp_path, settings=OPEN_TOML) as mount:
            for name in NAMES:
                (mount.mountpoint / "records" / name).read_bytes()
            mount.wait_for("complete", lambda now: now["store"]["complete"] == len(NAMES))
        others = "[limits.snapshots]\ncount = 1\nsize = 1\nage = 0.1\n"
        with mounted(tmp_path, settings=f"{OPEN_TOML}{others}") as mount:
            assert cachefs("gc", "--mountpoint", mount.mountpoint).stdout.endswith("0 bytes freed\n")
            assert taken(mount) >= len(NAMES) * LENGTH
        with mounted(tmp_path, settings=f"{OPEN_TOML}[limits.records]\n{limits}\n") as mount:
            kept = 0 if "age" in limits else 2
            mount.wait_for("evicted", lambda now: now["store"]["objects"] == kept)
            assert kept * LENGTH <= taken(mount) <= kept * LENGTH + PIECE


def test_20_a_record_that_could_not_be_had_again_is_told_before_it_is_evicted(site: Path, tmp_path: Path) -> None:
    limits = f'[limits.records]\nsize = {9 * LENGTH}\nage = "90d"\ncount = 100\n'
    with nginx(site) as url:
        etched(tmp_path, url)
        with mounted(tmp_path, settings=OPEN_TOML) as mount:
            for name in NAMES[:3]:
                (mount.mountpoint / "records" / name).read_bytes()
            mount.wait_for("complete", lambda now: now["store"]["complete"] == 3)
        (site / NAMES[1]).rename(site / "moved")
        try:
            with mounted(tmp_path, settings=f"{OPEN_TOML}{limits}") as mount:
                told = mount.wait_for("told", lambda now: bool(now["last_copies"]))["last_copies"]
                shown = cachefs("status", mount.mountpoint).stdout
                assert f"cachefs pin 'records/{NAMES[1]}' keeps it" in mount.child.printed()
        finally:
            (site / "moved").rename(site / NAMES[1])
    assert {name: why.endswith("HTTP 404") for name, why in told.items()} == {NAMES[1]: True}
    assert f"last copy  records/{NAMES[1]} may be evicted soon" in shown
    assert "  records  at most 9.4 MB, kept for 2160.0 h, at most 100 files" in shown
