"""Whole objects in the store, when the disk doesn't answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachefs.content import ContentId
from cachefs.errors import StoreFailed
from cachefs.store import State
from cachefs.store.state import ObjectRow, Seal
from cachefs.store.vault import Vault


def test_a_file_that_cannot_be_looked_at_is_a_failure_of_the_store(tmp_path: Path) -> None:
    content = ContentId("sha256", bytes(32))
    state = State.open(tmp_path / "state.db")
    state.save_object(content, ObjectRow(64, 100, b"\xc0", 100, Seal(100, 1, 2), 9.0, 10.0))
    vault = Vault(tmp_path / "store", state)
    assert vault.sealed(content) is None
    place = vault.path(content).parent
    place.parent.mkdir(parents=True)
    place.write_text("where a directory should be")
    with pytest.raises(StoreFailed, match=f"{place}.*Not a directory"):
        vault.sealed(content)
    state.close()
