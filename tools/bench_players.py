"""Real players on records that aren't here yet: the long forms of what the tests look at."""

from __future__ import annotations

from tests.scan_kit import SIZE, scan
from tests.slow_kit import PIECE_TIME, RATE, Heard, hear
from tools.bench_stage import Stage
from tools.benchkit import MB, Report

_SECONDS = 480
"""Of pink noise, which is 60 MB of FLAC."""

_PLAYING = 60.0
_RECORDS = 1000


def players(stage: Stage) -> Report:
    """mpv on a cold FLAC of 60 MB behind 4 Mbit/s: it plays a minute, then seeks to three quarters of the song."""
    with stage.fresh_folder() as folder:
        heard = hear(folder, _SECONDS, _PLAYING)
    report = Report(f"mpv plays a cold FLAC of {heard.size / MB:.0f} MB over a link of {RATE * 8 / MB:.0f} Mbit/s")
    report.add({name: [value] for name, value in _figures(heard).items()}, "s")
    report.add({"underruns in mpv's log": [heard.underruns]}, "")
    report.notes.append(
        f"A piece takes {PIECE_TIME:.2f} s on this link. The seek moved {heard.seek_bytes / MB:.2f} MB, which take "
        f"{heard.seek_bytes / RATE:.2f} s: the rest of the piece that was under way, and those that ffmpeg reads."
    )
    return report


def _figures(heard: Heard) -> dict[str, float]:
    return {
        "from mpv's start to the first sound": heard.start,
        "the most that it fell behind the clock": heard.lag,
        "a reader's first read at another place": heard.own_jump,
        "another's read elsewhere, while mpv fills its cache": heard.jump,
        "seek, to the sound": heard.seek,
    }


def scanned(stage: Stage) -> Report:
    """MPD scans a thousand cold records."""
    with stage.fresh_folder() as folder:
        result = scan(folder, _RECORDS)
    report = Report(f"MPD scans {_RECORDS:,} cold FLAC records of {SIZE / 2**20:.0f} MiB")
    report.add({"scan": [result.seconds]}, "s")
    report.add({"songs found": [result.songs]}, "")
    report.add({"fetched of the library": [100 * result.fetched / result.library]}, "%")
    report.notes.append("MPD itself reads the first 512 KiB and the end of each; a record's piece is 256 KiB.")
    return report
