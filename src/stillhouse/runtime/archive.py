"""A champion as one file for devices that pull it: the same model is the same bytes, anywhere and at any time."""

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
        """What a device needs to know whether it has it, and whether it came whole (RFC 9110, RFC 9530)."""
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
    """The files of a variant, and what was signed about them, in the order of their names.

    Neither names of users nor times are in it, so that its bytes depend on those of the files alone.

    :param files: content by path.
    """
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), 0o644, 0
            archive.addfile(entry, io.BytesIO(content))
    packed = gzip.compress(plain.getvalue(), compresslevel=6, mtime=0)
    return Archive(version, packed, hashlib.sha256(packed).hexdigest())
