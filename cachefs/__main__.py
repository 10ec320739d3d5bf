"""`python -m cachefs`: the same as the `cachefs` command."""

from __future__ import annotations

from cachefs.cli import main

if __name__ == "__main__":
    main(prog_name="cachefs")
