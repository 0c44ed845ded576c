"""Digests of memory that was not written to since it was hashed, as the kernel knows it.

Before memory is hashed, its pages are write-protected with ``userfaultfd`` in asynchronous mode: the first write to a page is not stopped,
and marks the page. A digest is used again only while no page is marked, so that writes through tensors, arrays, other views, other threads
and system calls all count. Only private anonymous memory is tracked, because other processes may write to any other.

Linux 6.7 or later on x86-64 or ARM64. Elsewhere, and where the kernel refuses it, every digest is computed anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import platform
import struct
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache

from yggdrasill.values.payload import blake3_hex

__all__ = ["TRACKED_FROM", "Tracker", "known_digest", "protected_parts", "record", "tracked_digest"]

TRACKED_FROM = 4 << 20
"""Bytes from which memory is tracked; hashing less costs about as much as asking the kernel."""

_LOG = logging.getLogger("yggdrasill.values")
_MAX_RECORDS = 128
_PAGE = mmap.PAGESIZE
_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY = 1
_API, _API_VERSION = 0xC018AA3F, 0xAA
_REGISTER, _UNREGISTER, _WRITEPROTECT, _PAGEMAP_SCAN = 0xC020AA00, 0x8010AA01, 0xC018AA06, 0xC0606610
#: Features: the flag of write faults, markers for pages that do not exist yet, and asynchronous resolution.
_FEATURES = 1 << 0 | 1 << 13 | 1 << 15
_MODE_WP = 2
_SCAN_CHECK_WPASYNC, _SCAN_WRITTEN = 2, 2
_SCAN_BYTES, _REGION_BYTES = 96, 24
#: Bits of an entry of ``/proc/self/pagemap``: present, swapped, of a file or shared, and write-protected by userfaultfd.
_PRESENT, _SWAPPED, _FILE, _PROTECTED = 1 << 63, 1 << 62, 1 << 61, 1 << 57


class _Record:
    """Memory from ``start`` to ``stop``, whole pages of which from ``first`` to ``end`` are protected. ``digest`` is None until it is known."""

    def __init__(self, start: int, nbytes: int) -> None:
        self.start, self.stop = start, start + nbytes
        self.first, self.end = start + -start % _PAGE, self.stop - self.stop % _PAGE
        self.head = self.tail = memoryview(b"")
        self.digest: str | None = None

    def overlaps(self, other: _Record) -> bool:
        return self.first < other.end and other.first < self.end

    def middle_of(self, data: memoryview) -> memoryview:
        return data[self.first - self.start : self.end - self.start]

    def has_edges_of(self, data: memoryview) -> bool:
        head, tail = self.first - self.start, self.end - self.start
        return data[:head] == self.head and data[tail:] == self.tail


class Tracker:
    """The records of one process. Thread-safe.

    Raises:
        OSError: this system has no such protection, or it does not work as expected.
    """

    def __init__(self) -> None:
        number = _USERFAULTFD.get(platform.machine())
        if sys.platform != "linux" or number is None or ctypes.sizeof(ctypes.c_void_p) != 8:
            raise OSError("userfaultfd is not available on this system")
        libc = ctypes.CDLL(None, use_errno=True)
        self._fault_fd = int(libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY))
        if self._fault_fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._map_fd = -1
        self._lock = threading.Lock()
        self._records: OrderedDict[tuple[int, int], _Record] = OrderedDict()
        try:
            self._map_fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._control(_API, struct.pack("QQQ", _API_VERSION, _FEATURES, 0))
            self._check_kernel()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Forget everything and end the protection."""
        with self._lock:
            self._records.clear()
            for handle in (self._fault_fd, self._map_fd):
                with contextlib.suppress(OSError):
                    os.close(handle)
            self._fault_fd = self._map_fd = -1

    def digest(self, data: memoryview) -> str:
        """Return the BLAKE3 of contiguous ``data`` in hex, of the record or computed and recorded."""
        known = self.known(data)
        if known is not None:
            return known
        record = self._protect(data)
        if record is None:
            return blake3_hex(data)
        digest = _hash_parts([record.head, record.middle_of(data), record.tail])
        record.digest = digest
        return digest

    def record(self, data: memoryview, digest: str) -> None:
        """Record the digest of ``data``, to which the caller alone has access so far."""
        record = self._protect(data)
        if record is not None:
            record.digest = digest

    def known(self, data: memoryview) -> str | None:
        """Return the recorded digest of ``data`` if none of its bytes was written to since, else None."""
        record = self._find(data)
        return None if record is None else record.digest

    def parts(self, data: memoryview, digest: str) -> Sequence[memoryview] | None:
        """Return the bytes of ``data`` in parts if ``digest`` is known to be theirs: what is read from the parts before `known` returns the
        digest again has that digest."""
        record = self._find(data)
        if record is None or record.digest != digest:
            return None
        return [record.head, record.middle_of(data), record.tail]

    def _find(self, data: memoryview) -> _Record | None:
        key = (_address_of(data), data.nbytes) if data.nbytes >= TRACKED_FROM else None
        with self._lock:
            record = None if key is None else self._records.get(key)
            if key is None or record is None or record.digest is None:
                return None
            if record.has_edges_of(data) and self._is_unwritten(record):
                self._records.move_to_end(key)
                return record
            self._drop(key)
        return None

    def _drop(self, key: tuple[int, int]) -> None:
        """Forget a record and end its protection, which costs time at every first write to a page. Call under the lock."""
        old = self._records.pop(key)
        with contextlib.suppress(OSError):
            self._control(_UNREGISTER, struct.pack("QQ", old.first, old.end - old.first))

    def _protect(self, data: memoryview) -> _Record | None:
        """Protect the pages of ``data`` and return its new record, or None if that is not possible. Overlapping records are dropped: their
        pages would lose their marks."""
        if data.nbytes < TRACKED_FROM:
            return None
        record = _Record(_address_of(data), data.nbytes)
        with self._lock:
            if self._fault_fd < 0:
                return None
            for key in [key for key, other in self._records.items() if other.overlaps(record)]:
                del self._records[key]
            span = record.first, record.end - record.first
            try:
                self._control(_REGISTER, struct.pack("QQQQ", *span, _MODE_WP, 0))
                self._control(_WRITEPROTECT, struct.pack("QQQ", *span, 1))
            except OSError:
                return None
            # Copies, because the bytes outside of whole pages are not protected.
            record.head = memoryview(bytes(data[: record.first - record.start]))
            record.tail = memoryview(bytes(data[record.end - record.start :]))
            self._records[record.start, data.nbytes] = record
            while len(self._records) > _MAX_RECORDS:
                self._drop(next(iter(self._records)))
        return record

    def _is_unwritten(self, record: _Record) -> bool:
        """Return whether every page is private memory in its place, still protected, and still registered."""
        import numpy as np

        pages = (record.end - record.first) // _PAGE
        try:
            entries = np.frombuffer(os.pread(self._map_fd, 8 * pages, record.first // _PAGE * 8), np.uint64)
            mask, wanted = np.uint64(_PRESENT | _SWAPPED | _FILE | _PROTECTED), np.uint64(_PRESENT | _PROTECTED)
            if len(entries) != pages or not bool(np.all(entries & mask == wanted)):
                return False
            region = ctypes.create_string_buffer(_REGION_BYTES)
            scan = struct.pack(
                "QQQQQQQQQQQQ", _SCAN_BYTES, _SCAN_CHECK_WPASYNC, record.first, record.end, 0, ctypes.addressof(region), 1, 0, 0,
                _SCAN_WRITTEN, 0, _SCAN_WRITTEN,
            )  # fmt: skip
            return self._control(_PAGEMAP_SCAN, scan, self._map_fd) == 0
        except OSError:
            return False

    def _control(self, request: int, argument: bytes, handle: int | None = None) -> int:
        import fcntl

        result: int = fcntl.ioctl(self._fault_fd if handle is None else handle, request, bytearray(argument), True)
        return result

    def _check_kernel(self) -> None:
        """Raise OSError unless writes by the processor and by the kernel are noticed, and nothing else is."""
        source = os.pipe()
        memory = mmap.mmap(-1, TRACKED_FROM + 2 * _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            os.write(source[1], b"x")
            view = memoryview(memory)
            data = view[1:-1]
            for at in range(0, len(view), _PAGE):
                view[at] = 1

            def write() -> None:
                data[len(data) // 2] ^= 1

            def read_into() -> None:
                os.readv(source[0], [data[_PAGE : _PAGE + 1]])

            for change in (write, read_into):
                self.record(data, "")
                unchanged = self.known(data)
                change()
                if unchanged != "" or self.known(data) is not None:
                    raise OSError("userfaultfd does not track writes as expected")
            data.release()
            view.release()
        finally:
            for handle in source:
                os.close(handle)
            with contextlib.suppress(BufferError):
                memory.close()


def _address_of(data: memoryview) -> int:
    import numpy as np

    return int(np.frombuffer(data, np.uint8).ctypes.data)


def _hash_parts(parts: Sequence[memoryview]) -> str:
    from blake3 import blake3

    hasher = blake3(max_threads=blake3.AUTO)
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()


def _tracker() -> Tracker | None:
    """Return the tracker of this process, or None where writes cannot be tracked. Memory cannot be registered with two."""
    with _creating:
        return _new_tracker()


_creating = threading.Lock()


@lru_cache(maxsize=1)
def _new_tracker() -> Tracker | None:
    try:
        return Tracker()
    except OSError as error:
        _LOG.debug("Writes to memory are not tracked: %s", error)
        return None


def _after_fork() -> None:
    """Forget the tracker of the parent process: its handles would act on the parent's memory."""
    global _creating  # noqa: PLW0603 - another thread of the parent may have held the lock
    _creating = threading.Lock()
    _new_tracker.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def tracked_digest(data: memoryview) -> str:
    """Return the BLAKE3 of contiguous ``data`` in hex; it is not computed again if the memory was not written to since the last time."""
    tracker = _tracker() if data.nbytes >= TRACKED_FROM else None
    return blake3_hex(data) if tracker is None else tracker.digest(data)


def known_digest(data: memoryview) -> str | None:
    """Return the BLAKE3 of ``data`` if it was recorded and the memory was not written to since, else None."""
    tracker = _tracker() if data.nbytes >= TRACKED_FROM else None
    return None if tracker is None else tracker.known(data)


def protected_parts(data: memoryview, digest: str) -> Sequence[memoryview] | None:
    """Return the bytes of ``data`` in parts if ``digest`` is known to be theirs, else None; see `Tracker.parts`."""
    tracker = _tracker() if data.nbytes >= TRACKED_FROM else None
    return None if tracker is None else tracker.parts(data, digest)


def record(data: memoryview, digest: str) -> None:
    """Record the digest of ``data``, new memory to which the caller alone has access so far."""
    tracker = _tracker() if data.nbytes >= TRACKED_FROM else None
    if tracker is not None:
        tracker.record(data, digest)
