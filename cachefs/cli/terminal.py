"""Printing, and logging to stderr, of what strangers have a word in: no terminal does what they say.

How it works: a name in a list, the header of an answer or the words of rclone may hold control characters, with which
a terminal can be made to do and to hide much. So they are escaped in all that is for people: what goes to a terminal,
to stderr, or into the log. What goes to a file or a pipe on stdout stays as it is.
"""

from __future__ import annotations

import logging
import re
import sys

import click

# C0 but for tab and newline, DEL, C1; and what turns the direction of writing round.
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """The text with what a terminal would take for a command escaped, as Python does it."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def echo(text: object = "", *, nl: bool = True, err: bool = False) -> None:
    """Print, as `click.echo` does."""
    click.echo(plain(str(text)) if err or sys.stdout.isatty() else text, nl=nl, err=err)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        record.message = record.message.replace("\n", "\\n")  # or it would look like a message of its own
        return super().formatMessage(record)


def log_to_stderr(level: int, form: str) -> None:
    """Have what is logged from this level on written to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain(form))
    logging.basicConfig(level=level, handlers=[handler])
