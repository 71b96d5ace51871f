"""An object store for tests of runs on one: moto's S3, checking signatures and policies, behind a proxy of faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fault_proxy import FaultProxy

BUCKET, DENIED = "bucket", "denied"
POLICY = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Action": "s3:*", "Resource": "*"},
        {"Effect": "Deny", "Action": "s3:*", "Resource": [f"arn:aws:s3:::{DENIED}", f"arn:aws:s3:::{DENIED}/*"]},
    ],
}
SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until its parent has ended
"""


@dataclass
class Store:
    """A running store.

    Attributes:
        proxy: Before the server: counts requests, and fails when asked to.
        key: Of a user who may do everything but in the bucket ``denied``.
        secret: Their secret.
        runs: How many runs were given out.
    """

    proxy: FaultProxy
    key: str
    secret: str
    runs: int = field(default=0)

    def url(self, name: str = "run", bucket: str = BUCKET) -> str:
        """Returns the URL of a new run."""
        self.runs += 1
        return f"s3://{bucket}/tests-{os.getpid()}/{self.runs}/{name}"


@pytest.fixture(scope="session")
def store_server() -> Iterator[Store]:
    """An S3 server in a process of its own, one for the session; skipped without moto."""
    pytest.importorskip("moto")
    pytest.importorskip("flask_cors", reason="moto's server needs it")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with FaultProxy(port) as proxy:
            yield Store(proxy, *_set_up(f"http://127.0.0.1:{port}"))
    finally:
        process.kill()
        process.communicate()


def _set_up(url: str) -> tuple[str, str]:
    """Makes two buckets and a user, has the server check everything from then on, returns the user's key and secret."""
    import boto3

    anybody = {"region_name": "us-east-1", "aws_access_key_id": "any", "aws_secret_access_key": "any"}
    session = boto3.Session(**anybody)
    storage, users = (session.client(name, endpoint_url=url) for name in ("s3", "iam"))
    for name in (BUCKET, DENIED):
        storage.create_bucket(Bucket=name)
    users.create_user(UserName="tests")
    users.put_user_policy(UserName="tests", PolicyName="tests", PolicyDocument=json.dumps(POLICY))
    made = users.create_access_key(UserName="tests")["AccessKey"]
    strict = urllib.request.Request(  # noqa: S310
        f"{url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}, method="POST"
    )
    urllib.request.urlopen(strict, timeout=10).close()  # noqa: S310
    return made["AccessKeyId"], made["SecretAccessKey"]


@pytest.fixture
def store(store_server: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """The store, with credentials in the environment and a cache folder of the test's own."""
    from cdn_tune.training.object_store.store import open_store

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{store_server.proxy.endpoint}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", store_server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", store_server.secret)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("CDN_TUNE_CACHE", str(tmp_path / "cache"))
    open_store.cache_clear()
    yield store_server
    store_server.proxy.heal()
    open_store.cache_clear()
