"""The status as a web page: the same text as in a terminal, which renews itself."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from cachefs.control.report import lines

_EVERY = 2
"""Seconds."""

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="refresh" content="{every}">
<meta name="viewport" content="width=device-width">
<title>cachefs {mountpoint}</title>
<style>:root {{ color-scheme: light dark }} pre {{ white-space: pre-wrap; overflow-wrap: anywhere }}</style>
<pre>{text}</pre>
<p><a href="status.json">status.json</a> <a href="metrics">metrics</a></p>
</html>
"""


def page(status: Mapping[str, Any]) -> str:
    """HTML without scripts; `status` is what `StatusSource.collect` gave."""
    text = escape("\n".join(lines(status)))
    return _PAGE.format(every=_EVERY, mountpoint=escape(status["mount"]["mountpoint"]), text=text)
