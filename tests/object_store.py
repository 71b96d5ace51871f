"""An object store for tests of runs on one: a server process on loopback, one for the session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SERVER = Path(__file__).resolve().parent / "s3_server.py"
KEY, SECRET = "test-key", "test-secret"
BUCKET = "bucket"


@dataclass
class Store:
    """A running store.

    Attributes:
        endpoint: HOST:PORT.
        ours: Whether it is our own server, which counts requests and fails when asked to.
        runs: How many runs were given out.
    """

    endpoint: str
    ours: bool = True
    runs: int = field(default=0)

    def url(self, name: str = "run", bucket: str = BUCKET) -> str:
        """Returns the URL of a new run."""
        self.runs += 1
        return f"s3://{bucket}/tests-{os.getpid()}/{self.runs}/{name}"

    def control(self, **asked: Any) -> dict[str, Any]:
        """Asks our server to fail, to wait, or what it was asked for so far."""
        if not self.ours:
            pytest.skip("needs the tests' own server")
        request = urllib.request.Request(f"http://{self.endpoint}/-control", json.dumps(asked).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            told: dict[str, Any] = json.loads(answer.read())
            return told


@pytest.fixture(scope="session")
def store_server() -> Iterator[Store]:
    """An S3 server; another one than ours if CDN_TUNE_TEST_S3 names its HOST:PORT, with a bucket named ``bucket``."""
    other = os.environ.get("CDN_TUNE_TEST_S3")
    if other:
        yield Store(other, ours=False)
        return
    process = subprocess.Popen([sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        store = Store(f"127.0.0.1:{int(process.stdout.readline())}")
        store.control(bucket=BUCKET)
        yield store
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def store(store_server: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """The store, with credentials in the environment and a cache folder of the test's own."""
    from cdn_tune.training.object_store.store import open_store

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{store_server.endpoint}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path / "cache"))
    open_store.cache_clear()
    yield store_server
    if store_server.ours:
        store_server.control(fail=0, delay=0.0)
    open_store.cache_clear()
