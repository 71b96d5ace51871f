"""What tests of training share: an object store."""

from tests.object_store import store, store_server

__all__ = ["store", "store_server"]
