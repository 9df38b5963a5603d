"""Read artifacts of MLflow, and download folders so that they appear complete or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, mkdtemp
from urllib.parse import urlsplit
from urllib.request import url2pathname

from stillhouse.errors import RegistryError, SignatureError
from stillhouse.files import write_atomic
from stillhouse.registry.connection import does_not_exist, without_credentials
from stillhouse.verifying import FilesDiffer, check_files

__all__ = ["download_once", "download_signed", "read_artifact", "write_local"]


# --------------------------------------------------------------------------- one file


def read_artifact(root: str, path: str, uri: str) -> bytes | None:
    """The content of the artifact ``path`` below the address ``root``; None if it does not exist.

    A file on this machine is read in place, without a copy.

    :param uri: of the MLflow tracking server.
    :raises RegistryError: if the file cannot be read for another reason.
    """
    with TemporaryDirectory() as folder:
        try:
            return _local_copy(f"{root.rstrip('/')}/{path}", folder, uri).read_bytes()
        except RegistryError as error:
            if _is_absent(root, path, uri, error):
                return None
            raise


def write_local(root: str, path: str, content: bytes) -> bool:
    """Write the artifact ``path`` below the address ``root`` over the old one, if it is on this machine.

    :returns: False, and nothing is written, if it is elsewhere.
    """
    if not _is_local(root):
        return False
    address = urlsplit(root)
    folder = url2pathname(address.path) if address.scheme == "file" else root
    write_atomic(Path(folder) / path, content, durable=True)
    return True


def _local_copy(address: str, folder: str, uri: str) -> Path:
    """The path of an artifact: the file itself if it is on this machine, otherwise a copy in ``folder``."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    target = None if _is_local(address) else folder
    try:
        return Path(download_artifacts(artifact_uri=address, dst_path=target, tracking_uri=uri))
    except (MlflowException, OSError) as error:
        raise RegistryError(f"{without_credentials(address)} cannot be read: {error}") from error


def _is_absent(root: str, path: str, uri: str, error: RegistryError) -> bool:
    """Whether reading failed because the file does not exist."""
    if does_not_exist(error) or isinstance(error.__cause__, FileNotFoundError):
        return True
    if _is_local(root):
        return False
    from mlflow.artifacts import list_artifacts
    from mlflow.exceptions import MlflowException

    folder = f"{root.rstrip('/')}/{PurePosixPath(path).parent}".removesuffix("/.")
    try:
        files = list_artifacts(artifact_uri=folder, tracking_uri=uri)
    except (MlflowException, OSError):
        return False
    return not any(PurePosixPath(file.path).name == PurePosixPath(path).name for file in files)


def _is_local(address: str) -> bool:
    return address.startswith(("file:", "/"))


# --------------------------------------------------------------------------- folders


def download_once(download: Callable[[str], Path], target: Path) -> None:
    """Move the folder that ``download`` returns to ``target`` in one step; another process may do the same at once.

    :param download: downloads into the temporary folder that it is given, and returns the path of the result.
    """
    _download(download, target, lambda downloaded: None)


def download_signed(download: Callable[[str], Path], target: Path, files: Mapping[str, str], label: str) -> None:
    """:func:`download_once`, unless ``target`` already holds exactly the signed files; a damaged target is replaced.

    :param files: the signed SHA-256 digests by path.
    :param label: names the model in an error.
    :raises SignatureError: if the downloaded files differ from the signed ones. They are not kept, so the next call
        downloads again.
    """

    def check(downloaded: Path) -> None:
        try:
            check_files(downloaded, files)
        except FilesDiffer as error:
            raise SignatureError(f"{label} arrived damaged, or its stored files were altered: {error}") from error

    if _matches(target, files):
        return
    _download(download, target, check)


def _matches(target: Path, files: Mapping[str, str]) -> bool:
    try:
        check_files(target, files)
    except (FilesDiffer, OSError):
        return False
    return True


def _download(download: Callable[[str], Path], target: Path, check: Callable[[Path], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = mkdtemp(prefix=f".{target.name}-", dir=target.parent)
    try:
        downloaded = download(partial)
        check(downloaded)
        _replace(downloaded, target, Path(partial, "replaced"))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(downloaded: Path, target: Path, old: Path) -> None:
    """Move ``downloaded`` to ``target``; an existing target is moved to ``old`` first."""
    with suppress(FileNotFoundError):
        target.replace(old)
    try:
        downloaded.replace(target)
    except OSError:  # another process was faster
        if not target.exists():
            raise
