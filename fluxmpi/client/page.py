"""Finding the broker's page of roots (``kvs/page``): the one place of the client that maps a file."""

from __future__ import annotations

import mmap
import os
import stat

from fluxmpi.kvs.replica.root_page import PAGE_BYTES, RootPage


def open_page(path: str, instance: str, rank: int, pid: int) -> RootPage | None:
    """The page at ``path``, if it is that broker's and ours to read; None when there is none, which is no error."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_size < PAGE_BYTES:
            return None
        page = RootPage(mmap.mmap(fd, PAGE_BYTES, prot=mmap.PROT_READ))
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)
    return page if page.is_of(instance, rank, pid) else None
