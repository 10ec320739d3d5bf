"""Play time in sync: which record plays, from where, and since when, told to everybody who listens.

A playhead (`model.py`) is a small fact from which every listener computes the position by itself, so nothing is sent
while music plays. One daemon decides (`board.py`); others follow it over HTTP (`server.py`, `client.py`) with a
measured idea of its clock (`clock.py`); `bridge.py` makes an mpv play what the playhead says.
"""
