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
import numpy as np
import pytest
import yaml
from conftest import ROOT, TINY, make_project, save
from gradio_client import Client, handle_file
from lines import old, predictor, review_page
from lines import picture as part
from processes import started, within
from servers import free_port

from changepair.tasks.monitoring.record import Record, arrived, judge

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
    with api(tmp_path, "--memory", "2800", "--timeout", "6") as (url, process), httpx.Client(base_url=url, timeout=60) as client:
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


@contextmanager
def demo(folder: Path, *arguments: str) -> Iterator[tuple[str, int]]:
    """`changepair demo` in a process of its own: its address and process."""
    port = free_port()
    with started(folder, "changepair", "demo", "--port", str(port), *arguments, TMPDIR=str(folder), PYTHONPATH=str(ROOT)) as process:
        within(90, lambda: b"serving the page at" in (folder / "output.log").read_bytes() or process.poll() is not None)
        assert process.poll() is None, (folder / "output.log").read_text()
        yield f"http://127.0.0.1:{port}", process.pid


def tray(*pictures: Path) -> list[dict[str, object]]:
    return [{"image": handle_file(str(picture)), "caption": None} for picture in pictures]


def test_the_visitors_of_the_demo_take_no_more_memory_than_it_has(bomb: bytes, tmp_path: Path) -> None:
    """With a budget for one picture of 25 million pixels at a time; 8 visitors keep their results."""
    pictures = {side: tmp_path / f"{side}.png" for side in (64, 5000, SIDE)}
    for side, file in pictures.items():
        file.write_bytes(bomb if side == SIDE else black_png(side))
    with demo(tmp_path, "--memory", "1200") as (url, process):
        before = memory(process, "VmRSS")
        for _visitor in range(8):
            client = Client(url, download_files=False, verbose=False)
            with pytest.raises(Exception, match=r"normal pictures: needs \d+ GB of memory, more than the 0\.\d+ GB that the page has"):
                client.predict(tray(*[pictures[SIDE]] * 16), api_name="/prompt")
            assert "1 normal picture loaded" in client.predict(tray(pictures[64]), api_name="/prompt")
            said, shown, _histogram = client.predict(
                tray(pictures[64], pictures[SIDE], pictures[5000], pictures[5000]), 1.0, api_name="/check"
            )
            assert len(shown) == 3 and f"Skipped: {SIDE}.png: needs" in said
        assert memory(process, "VmHWM") - before < 1_200_000_000
        within(30, lambda: memory(process, "VmRSS") - before < 400_000_000)


def test_the_visitors_of_the_review_page_hold_no_pictures(tmp_path: Path) -> None:
    content = yaml.safe_load(yaml.safe_dump(TINY))
    content["pipelines"]["small"]["watch"] = {"folder": "line", "prompts": "parts/bricks/train/good/0.png", "normals": "normals"}
    project = make_project(tmp_path / "project", content)
    save(part(0), project / "normals/0.png")
    large = np.zeros((5000, 5000), np.uint8)
    large[:50] = np.random.default_rng(0).integers(0, 255, (50, 5000))
    old(save(large, project / "line/large.png"))
    record = Record(project / "data/watch/small")
    list(judge(predictor(), "kit-1", arrived(project / "line", record, settled=0), record))
    assert [one.verdict for one in record.rows()] == ["anomalous"]
    with review_page(project) as (url, page):
        before = memory(page.pid, "VmRSS")
        clients = [Client(url, download_files=False, verbose=False) for _visitor in range(16)]
        for client in clients:
            assert "large.png" in client.predict("flagged", api_name="/begin")[3]
        assert memory(page.pid, "VmHWM") - before < 650_000_000
        within(30, lambda: memory(page.pid, "VmRSS") - before < 200_000_000)
        assert "No pictures are left" in clients[0].predict("hole", api_name="/anomalous")[3]
