"""Clients that send much, slowly or nothing: real servers, real sockets, and the memory that the kernel counts."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from processes import within

pytestmark = [pytest.mark.attack, pytest.mark.slow]  # each takes 20 s
SIDE = 9450
"""Pixels; a square of it is just below the largest picture that is read."""


def black_png(side: int) -> bytes:
    """A black grey PNG, which compresses to a thousandth."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(side * (side + 1)))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def bomb() -> bytes:
    content = black_png(SIDE)
    assert len(content) < 100_000
    return content


@contextmanager
def api(folder: Path, *arguments: str) -> Iterator[tuple[str, int]]:
    """`changepair api` in a process of its own: its address and process."""
    command = [str(Path(sys.executable).parent / "changepair"), "api", "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env={**os.environ}) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert " at http://127.0.0.1:" in line, line
            yield line.split(" at ")[1].split(";")[0], process.pid
        finally:
            process.kill()


def memory(process: int, what: str) -> int:
    """VmRSS or VmHWM of a process, bytes."""
    [line] = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) * 1024


def files(content: bytes, count: int) -> list[tuple[str, tuple[str, bytes]]]:
    return [("pictures", (f"{place}.png", content)) for place in range(count)]


def charged(client: httpx.Client) -> float:
    """Bytes that the service has charged."""
    [line] = [line for line in client.get("/metrics").text.splitlines() if line.startswith("changepair_memory_bytes ")]
    return float(line.split()[1])


def test_a_request_of_a_megabyte_takes_no_more_memory_than_the_service_has(bomb: bytes, tmp_path: Path) -> None:
    with api(tmp_path, "--memory", "2500", "--timeout", "6") as (url, process), httpx.Client(base_url=url, timeout=60) as client:
        prompts = {"prompts": client.post("/v1/prompts", files=files(black_png(64), 1)).json()["prompts"]}
        before, idle = memory(process, "VmRSS"), charged(client)
        start = time.monotonic()
        assert client.post("/v1/predict", files=files(bomb, 16), data=prompts).status_code == 504
        assert 5 < time.monotonic() - start < 25
        with ThreadPoolExecutor(4) as pool:  # of four, the budget holds one at a time
            ask = lambda _number: client.post("/v1/predict", files=files(bomb, 1), data=prompts)  # noqa: E731
            answers = list(pool.map(ask, range(4)))
        assert {answer.status_code for answer in answers} <= {200, 429, 504} and 429 in {answer.status_code for answer in answers}
        assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)
        start = time.monotonic()
        for path, count in (("/v1/prompts", 16), ("/v1/predict", 16)):
            refused = client.post(path, files=files(bomb, count), data={**prompts, "maps": "true"})
            assert refused.status_code == 413 and "more than the 1.9 GB that the service has" in refused.json()["detail"]
        assert time.monotonic() - start < 15  # nothing was decoded
        within(30, lambda: charged(client) == idle)
        assert client.post("/v1/predict", files=files(black_png(64), 1), data=prompts).status_code == 200
        assert memory(process, "VmHWM") - before < 2_500_000_000
        within(30, lambda: memory(process, "VmRSS") - before < 150_000_000)  # it is given back


def test_prompts_that_take_too_long_are_given_up_and_their_memory_is_free_again(tmp_path: Path) -> None:
    with api(tmp_path, "--timeout", "2") as (url, process), httpx.Client(base_url=url, timeout=60) as client:
        assert client.post("/v1/prompts", files=files(black_png(64), 1)).status_code == 201
        before, idle = memory(process, "VmRSS"), charged(client)
        start = time.monotonic()
        assert client.post("/v1/prompts", files=files(black_png(5000), 2)).status_code == 504
        assert time.monotonic() - start < 20
        within(30, lambda: charged(client) == idle)
        assert client.post("/v1/prompts", files=files(black_png(64), 1)).status_code == 201  # nobody works on the others any more
        within(30, lambda: memory(process, "VmRSS") - before < 100_000_000)
