"""Talking to the running daemon: a Unix socket in the data directory, and what it tells."""
