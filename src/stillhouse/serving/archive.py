"""The champion as one file for devices: the same model always gives the same bytes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Archive", "pack"]


@dataclass(frozen=True)
class Archive:
    """A ``.tar.gz`` of a variant's folder."""

    version: str
    """Such as ``flights@7``."""
    content: bytes
    sha256: str
    """Of ``content``, in hexadecimal."""

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers by which a device detects a known or a damaged download (RFC 9110, RFC 9530)."""
        digest = f"sha-256=:{base64.b64encode(bytes.fromhex(self.sha256)).decode()}:"
        name = self.version.replace("@", "-")
        return {
            "etag": f'"{self.sha256}"',
            "content-digest": digest,
            "repr-digest": digest,
            "content-disposition": f'attachment; filename="{name}.tar.gz"',
            "stillhouse-version": self.version,
            "cache-control": "no-cache",
        }


def pack(files: Mapping[str, bytes], version: str) -> Archive:
    """Pack a variant's files and their signature, sorted by name.

    The archive contains neither user names nor times, so its bytes depend on the files alone.

    >>> archive = pack({"manifest.json": b"{}"}, "flights@7")
    >>> archive.sha256 == pack({"manifest.json": b"{}"}, "flights@7").sha256
    True

    :param files: content by path.
    """
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o644, 0
            archive.addfile(entry, io.BytesIO(content))
    compressed = gzip.compress(tar.getvalue(), compresslevel=6, mtime=0)
    return Archive(version, compressed, hashlib.sha256(compressed).hexdigest())
