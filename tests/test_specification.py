"""The table in docs/specification.md names tests, and there are such tests."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _named() -> list[tuple[str, str]]:
    text = (ROOT / "docs" / "specification.md").read_text()
    return [(found[1], found[2]) for found in re.finditer(r"`(\w+)::(test_\w+)`", text)]


def test_every_sentence_of_the_specification_names_a_test_that_exists() -> None:
    missing = [
        f"{file}::{test}"
        for file, test in _named()
        if f"def {test}(" not in (ROOT / "tests" / f"test_{file}.py").read_text()
    ]
    assert missing == []


def test_every_row_of_the_specification_names_a_test() -> None:
    text = (ROOT / "docs" / "specification.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "it is specified that" not in line]
    assert len(rows) > 30
    assert [row for row in rows if "::test_" not in row] == []
