"""A real server that speaks S3, on loopback, with a bucket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import started, wait_until

BUCKET = "changepair"
SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCY"  # pragma: allowlist secret; of nobody: the key that the store of the test is given
S3 = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1"}
"""The environment of who may read it."""


@contextmanager
def store(home: Path, port: int) -> Iterator[str]:
    """Runs the store; gives its address."""
    home.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{port}"
    with started(home, "moto_server", "-H", "127.0.0.1", "-p", str(port)):
        wait_until(lambda: _listens(port), what="the start of the store")
        client(url).create_bucket(Bucket=BUCKET)
        yield url


def client(url: str) -> Any:
    import boto3

    keys = {"aws_access_key_id": S3["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": SECRET}
    return boto3.client("s3", endpoint_url=url, region_name=S3["AWS_DEFAULT_REGION"], **keys)


def upload(url: str, folder: Path, prefix: str) -> str:
    """Puts a folder's files into the bucket; gives the URL that they have there."""
    talks = client(url)
    for file in (path for path in folder.rglob("*") if path.is_file()):
        talks.upload_file(str(file), BUCKET, f"{prefix}/{file.relative_to(folder).as_posix()}")
    return f"s3://{BUCKET}/{prefix}"


def _listens(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0
