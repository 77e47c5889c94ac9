"""The C library's heap: what it keeps of freed memory, and when it gives that back.

By default malloc returns freed memory at the end of its heap to the kernel, and to allocate it again costs as much as to
digest its contents: 0.5 ms per MiB, a page fault for each page. So it keeps some (``keep_freed``). Memory that is freed
in the middle of the heap stays with the process for ever, unless it is trimmed: after a large collection, ``trim`` gives
it back. Only glibc has these functions; elsewhere both do nothing.
"""

from __future__ import annotations

import contextlib
import ctypes

MAPPED_BYTES = 4 << 20
"""Longer buffers are mapped one by one and unmapped when they are freed; pieces of long values are shorter."""

KEPT_BYTES = 16 << 20
"""Freed memory at the end of the heap that malloc keeps: the windows of two long values."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed() -> None:
    """Have malloc reuse the buffers of pieces."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def trim() -> None:
    """Give all free pages of the heap back to the kernel. It takes about 0.1 ms per MiB that is given back."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(KEPT_BYTES))
