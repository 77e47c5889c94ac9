"""Long values as files and memory: read and put piece by piece, never as a whole in the program's own memory."""

from __future__ import annotations

from fluxmpi.client.kvs.reading import Reading
from fluxmpi.client.kvs.stored_value import view
from fluxmpi.client.kvs.transaction import Transaction
from fluxmpi.client.kvs.value_file import File, TransferProgress, ValueFile, copy_to
from fluxmpi.client.snapshot import AtLike, Snapshot
from fluxmpi.errors import IsADirectory
from fluxmpi.kvs.objects import Dir, Val, ValRef


class LargeValues(Reading):
    """The methods of ``h.kvs`` for long values."""

    def open(self, key: str, *, at: AtLike = None) -> ValueFile:
        """Open a value as a binary file, to read in order or anywhere, with a few MiB of memory.

        Close it, or use it in a ``with`` block.

        Args:
            key: the key; links are followed.
            at: the state to read, see ``snapshot``; None is the newest.

        Raises:
            NoSuchKey: there is no such key.
            IsADirectory: the key is a directory.

        Example:
            >>> _ = h.kvs.put("doc.bytes", b"0123456789")
            >>> with h.kvs.open("doc.bytes") as file:
            ...     _ = file.seek(7)
            ...     file.read(), file.size
            (b'789', 10)
        """
        return self.file_of(self._stored(key, at))

    def file_of(self, found: Val | ValRef) -> ValueFile:
        """Open the bytes of a stored value as a file; see ``open``.

        Args:
            found: a value as ``get_object``, entries and changes have it.
        """
        return ValueFile(self._channel, found)

    def view(self, key: str, *, at: AtLike = None) -> memoryview:
        """Return the bytes of a value as a read-only memoryview.

        A value of more than 1 MiB is in memory that all readers of the node share: no copy is made.

        Args:
            key: the key; links are followed.
            at: the state to read, see ``snapshot``; None is the newest.

        Raises:
            NoSuchKey: there is no such key.
            IsADirectory: the key is a directory.

        Example:
            >>> _ = h.kvs.put("doc.bytes", b"0123456789")
            >>> bytes(h.kvs.view("doc.bytes")[:3])
            b'012'
        """
        return view(self._channel, self._stored(key, at))

    def get_file(self, key: str, file: File, *, progress: TransferProgress | None = None, at: AtLike = None) -> int:
        """Write a value to a file, piece by piece.

        Args:
            key: the key; links are followed.
            file: a name, or a binary file open for writing. A named file is written beside it first, as
                ``NAME.….part``, so it exists as a whole or not at all. Its links are followed; pipes and devices are
                written in place.
            progress: called with the number of bytes that have been written so far.
            at: the state to read, see ``snapshot``; None is the newest.

        Returns:
            The number of bytes.

        Raises:
            NoSuchKey: there is no such key.
            IsADirectory: the key is a directory.
            OSError: the file cannot be written.
        """
        with self.open(key, at=at) as source:
            return copy_to(source, file, progress)

    def put_file(self, key: str, file: File, *, progress: TransferProgress | None = None) -> Snapshot:
        """Set a key to the bytes of a file, read and stored piece by piece. ``Transaction.put_file`` does it with others.

        Args:
            key: the key.
            file: a name, or a binary file open for reading, also a pipe.
            progress: called with the number of bytes that have been stored so far.

        Returns:
            The version that the commit became.

        Raises:
            TooLarge: the file has more than 16 GiB.
            OSError: the file cannot be read.

        Example:
            >>> import io
            >>> snapshot = h.kvs.put_file("doc.file", io.BytesIO(b"from a file"))
            >>> h.kvs.get("doc.file")
            b'from a file'
        """
        txn = Transaction(self._channel, self._namespace)
        txn.put_file(key, file, progress)
        return txn.commit()

    def _stored(self, key: str, at: AtLike) -> Val | ValRef:
        found = self.get_object(key, follow=True, at=at)
        if isinstance(found, Dir):
            raise IsADirectory(f"key '{key}' is a directory: it has entries, and no value")
        assert isinstance(found, Val | ValRef), "links were followed"
        return found
