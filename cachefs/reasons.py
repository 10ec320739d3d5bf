"""Why reads of some content failed last: for the status and a file's attribute."""

from __future__ import annotations

from cachefs.content import ContentId

_MOST = 1000


class Reasons:
    """Why reads of some content failed last, of the thousand that did so last."""

    def __init__(self) -> None:
        self._errors: dict[ContentId, str] = {}

    def note(self, content: ContentId, error: Exception) -> None:
        """Keep the error's words."""
        self.forget(content)
        self._errors[content] = str(error)
        if len(self._errors) > _MOST:
            del self._errors[next(iter(self._errors))]

    def forget(self, content: ContentId) -> None:
        """A read had to wait and got its bytes."""
        self._errors.pop(content, None)

    def of(self, content: ContentId) -> str:
        """In words; empty if none failed."""
        return self._errors.get(content, "")
