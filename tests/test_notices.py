"""What the kernel is told unasked: dropping a page waits for whoever reads it, and nobody else may wait for that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from trio.testing import wait_all_tasks_blocked

from cachefs.content import Span
from cachefs.drivers import notices


@contextmanager
def unwilling_device() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe that takes nothing more: writing blocks, as a device does while a page is read."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        for size in (4096, 1):
            while _fits(writing, size):
                pass
        os.set_blocking(writing, True)
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def _fits(descriptor: int, size: int) -> bool:
    try:
        return os.write(descriptor, bytes(size)) > 0
    except BlockingIOError:
        return False


def test_however_many_pages_are_waited_for_other_threads_are_to_be_had() -> None:
    async def main() -> None:
        many = int(trio.to_thread.current_default_thread_limiter().total_tokens) + 5
        async with trio.open_nursery() as nursery:
            for inode in range(many):
                nursery.start_soon(notices.forget_pages, lambda: writing, inode, [Span(0, 4096)])
            await wait_all_tasks_blocked()
            with trio.fail_after(10):
                assert await trio.to_thread.run_sync(os.getpid) == os.getpid()
            while nursery.child_tasks:
                os.read(reading, 2**16)
                await trio.sleep(0.01)

    with unwilling_device() as (reading, writing):
        trio.run(main)
