"""Talking to the running daemon.

socket       commands, on a Unix socket in the data directory: keeping and holding are two groups of them
status       what it tells; report: as text; page, metrics: for browsers and Prometheus, over http
systemd      that it is ready, and how far
"""
