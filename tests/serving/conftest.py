"""The runtime's fixtures, for tests of the server."""

from tests.runtime.conftest import empty_store, installation, promoted, three_versions

__all__ = ["empty_store", "installation", "promoted", "three_versions"]
