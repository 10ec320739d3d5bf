"""What holds for the whole suite.

A shell that starts a suite in the background has it ignore SIGINT, and so do its children: Ctrl-C in a test would say
nothing to them.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
