"""Bars are drawn on a terminal only, and show any name as it is."""

from __future__ import annotations

import io
import sys

import pytest

from cachefs.cli.progress import bytes_bar


class Terminal(io.StringIO):
    """Where stderr goes, and it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_there_is_no_bar_where_there_is_no_terminal() -> None:
    with bytes_bar("song.mp3") as report:
        assert report is None


@pytest.mark.parametrize("name", ["song.mp3", "Song [/live].mp3", "Song [live] {2}.mp3", "https://[::1]/{x}"])
def test_a_bar_shows_any_name_as_it_is(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", terminal)
    with bytes_bar(name) as report:
        assert report is not None
        report(1, None)
        report(2, 3)
    assert name in terminal.getvalue()
