"""Bytes in flight: where content and its metadata are fetched from, and how."""
