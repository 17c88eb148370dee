"""Memory of a mapped file, given back while OpenVINO lays its weights out anew: else they lie in memory twice."""

from __future__ import annotations

import ctypes
import mmap
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAPS = Path("/proc/self/maps")
_APART = 0.05  # seconds


@contextmanager
def given_back(file: Path) -> Iterator[None]:
    """Every 50 ms in the block, and at its end. What is read again comes from the file. On Linux; elsewhere nothing."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_APART):
            _give_back(file)
        _give_back(file)

    watcher = threading.Thread(target=watch, name="mapped")
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _give_back(file: Path) -> None:
    if not _MAPS.exists():
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in _MAPS.read_text(encoding="utf-8").splitlines():
        place, may, *_, name = line.split(maxsplit=5)
        if name == str(file.resolve()) and may.startswith("r--"):  # nobody wrote there, so nothing is lost
            begin, end = (int(address, 16) for address in place.split("-"))
            madvise(begin, end - begin, mmap.MADV_DONTNEED)
