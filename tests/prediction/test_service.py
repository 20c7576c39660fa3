"""The service: a real server where the process counts, the application in this process elsewhere."""

from __future__ import annotations

import base64
import io
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import schemathesis
import skimage.data
import torch
from browser import browser, installed, requests
from conftest import ROOT
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from PIL import Image
from processes import within
from schemathesis.checks import not_a_server_error

from changepair.flows.prediction.service import Limits, make_app
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.tiles import Grid
from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.prediction import costs
from changepair.tasks.prediction.batching import Batcher, Busy
from changepair.tasks.prediction.costs import bytes_of
from changepair.tasks.prediction.models import Named
from changepair.tasks.prediction.outputs import FULL
from changepair.tasks.prediction.pictures import as_picture
from changepair.tasks.prediction.predictor import Predictor, score_of

TEXTURE = skimage.data.brick()


@pytest.fixture(scope="module")
def model() -> Named:
    own = PatchResidualSettings(resolution=64, top_share=0.01)
    return Named("patch-residual", {"patch-residual": own}, create_detector(own, build_encoder(own.encoder, 64)))


@pytest.fixture(scope="module")
def prompted(model: Named) -> Predictor:
    own = Predictor(model).prompt(TEXTURE[:96, :96])
    own.calibrate([TEXTURE[row : row + 96, 200:296] for row in range(0, 400, 20)], false_alarms=0.1)
    return own


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def crop(number: int) -> np.ndarray:
    return TEXTURE[7 * number :][:96, 3 * number :][:, :96]


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("pictures", (f"{place}.png", content, "image/png")) for place, content in enumerate(contents)]


def test_a_picture_gets_the_score_that_it_gets_in_python(prompted: Predictor) -> None:
    pictures = [crop(number) for number in range(5)]
    expected, maps = prompted(pictures)
    with TestClient(make_app(prompted, {})) as client:
        answer = client.post("/v1/predict", files=files(*map(png, pictures)), data={"maps": "true"}).json()
    scored = answer["predictions"]
    assert [one["score"] for one in scored] == pytest.approx(expected, abs=1e-6) and answer["detector"] == "patch-residual"
    assert [one["picture"] for one in scored] == [f"{place}.png" for place in range(5)]
    assert prompted.threshold is not None
    for one in scored:
        assert one["threshold"] == prompted.threshold.value and one["score"] == round(one["score"], 6)  # as in a table
        assert one["verdict"] == ("anomalous" if one["score"] > one["threshold"] else "normal")
    map_ = np.asarray(Image.open(io.BytesIO(base64.b64decode(scored[2]["map"])))) / FULL
    assert np.allclose(map_, maps[2], atol=1e-5)


def test_clients_bring_prompts_or_name_a_kit(model: Named, prompted: Predictor, tmp_path: Path) -> None:
    prompted.save(tmp_path / "line-3")
    app = make_app(Predictor(model), {"line-3": Predictor.load(tmp_path / "line-3")})
    with TestClient(app) as client:
        assert client.get("/v1/kits").json() == ["line-3"]
        own = client.post("/v1/prompts", files=files(png(crop(3)), png(crop(4)))).json()
        assert own["pictures"] == 2
        query = files(png(crop(9)))
        of_prompts = client.post("/v1/predict", files=query, data={"prompts": own["prompts"]}).json()["predictions"][0]
        of_kit = client.post("/v1/predict", files=query, data={"kit": "line-3"}).json()["predictions"][0]
        assert of_prompts["score"] == pytest.approx(Predictor(model).prompt([crop(3), crop(4)])(crop(9)).scores[0], abs=1e-6)
        assert of_kit["score"] == pytest.approx(prompted(crop(9)).scores[0], abs=1e-6) and of_kit["verdict"] is not None
        assert client.delete(f"/v1/prompts/{own['prompts']}").status_code == 204
        gone = client.post("/v1/predict", files=query, data={"prompts": own["prompts"]})
        assert gone.status_code == 404 and "send them again" in gone.json()["detail"]
        assert client.post("/v1/predict", files=query).status_code == 404  # no default


def test_of_more_prompts_than_it_remembers_the_longest_unused_go(model: Named) -> None:
    with TestClient(make_app(Predictor(model), {}, limits=Limits(prompted=2))) as client:
        names = [client.post("/v1/prompts", files=files(png(crop(place)))).json()["prompts"] for place in range(2)]
        query = files(png(crop(9)))
        assert client.post("/v1/predict", files=query, data={"prompts": names[0]}).status_code == 200
        names.append(client.post("/v1/prompts", files=files(png(crop(2)))).json()["prompts"])
        codes = [client.post("/v1/predict", files=query, data={"prompts": name}).status_code for name in names]
    assert codes == [200, 404, 200]


def test_prompts_are_dropped_when_their_memory_is_needed_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "growth_of", lambda _work: 0)  # the activations are far larger than these prompts
    settings_ = PatchResidualSettings(resolution=64, tiles=(3, 3))
    tiled = Named("patch-residual", {"patch-residual": settings_}, create_detector(settings_, build_encoder(settings_.encoder, 64)))
    size = sum(part.nbytes for part in Predictor(tiled).prompt(crop(0)).prompted.memory)
    weights = bytes_of([Predictor(tiled)])
    with TestClient(make_app(Predictor(tiled), {}, limits=Limits(memory=(weights + 14 * size) * 4 // 3))) as client:
        charged = lambda: float(client.get("/metrics").text.split("\nchangepair_memory_bytes ")[1].split()[0])  # noqa: E731
        names = []
        for number in range(9):
            names.append(client.post("/v1/prompts", files=files(png(crop(number)))).json()["prompts"])
            assert charged() <= weights + 14 * size  # the rest is for bodies
        kept = round((charged() - weights) / size)
        assert 1 <= kept < 9 and charged() == weights + kept * size
        assert [client.delete(f"/v1/prompts/{name}").status_code for name in names] == [404] * (9 - kept) + [204] * kept
        assert charged() == weights


def test_kits_or_a_batch_that_take_all_memory_are_refused_at_the_start(prompted: Predictor) -> None:
    with pytest.raises(BadInput, match="increase --memory, reduce --batch-size, or use fewer kits"):
        make_app(prompted, {}, limits=Limits(memory=1_000_000))
    memory = 2 * bytes_of([prompted]) + 50_000_000
    make_app(prompted, {}, limits=Limits(memory=memory))
    with pytest.raises(BadInput, match=r"a batch of 512 need .* reduce --batch-size"):
        make_app(prompted, {}, limits=Limits(memory=memory), batch_size=512)


def test_a_request_that_fits_only_without_the_detector_is_refused_at_once(prompted: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "growth_of", lambda _work: 100_000_000)
    total = 150_000_000 + bytes_of([prompted])  # of which 100 MB are one batch's
    side = 2000  # 72 MB
    with TestClient(make_app(prompted, {}, limits=Limits(memory=total * 4 // 3))) as client:
        start = time.monotonic()
        refused = client.post("/v1/predict", files=files(png(np.zeros((side, side), np.uint8))))
        assert refused.status_code == 413 and "more than the 0.05 GB" in refused.json()["detail"] and time.monotonic() - start < 3
        assert client.post("/v1/predict", files=files(png(np.zeros((side // 2, side // 2), np.uint8)))).status_code == 200


def test_the_growth_of_memory_is_measured_where_the_system_counts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = [costs.growth_of(lambda: np.ones(80_000_000, np.uint8)) for _again in range(2)]  # freed at once, which VmRSS no longer has
    assert all(size is not None and 75_000_000 < size < 100_000_000 for size in sizes), sizes
    monkeypatch.setattr(costs, "PROC", tmp_path)
    done = []
    assert costs.growth_of(lambda: done.append(1)) is None and done == [1]


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "resolution"), [("resnet18", 256), ("vit_small_patch14_dinov2.lvd142m", 392)])
def test_the_activations_of_a_batch_are_measured(encoder: str, resolution: int) -> None:
    """The kernel's peak of a process that scores one batch of real pictures, and measured nothing, is the measurement of another one."""
    measured, peak = (
        int(
            subprocess.run(
                [sys.executable, "-c", ACTIVATIONS, encoder, str(resolution), what], capture_output=True, text=True, check=True, cwd=ROOT
            ).stdout
        )
        for what in ("measure", "score")
    )
    assert 0.8 * measured < peak < 1.05 * measured, (measured, peak)


ACTIVATIONS = """
import sys, skimage.data, torch
from changepair.flows.prediction.budget import return_freed_memory
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.detectors.store import create_detector
from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.prediction.costs import Costs
from changepair.tasks.prediction.models import Named
from changepair.tasks.prediction.predictor import Predictor
name, side, what = sys.argv[1], int(sys.argv[2]), sys.argv[3]
return_freed_memory()
settings = PatchResidualSettings(resolution=side, encoder=EncoderSettings("timm", name, "model", (6, 12) if name.startswith("vit") else ()))
own = Predictor(Named("patch-residual", {"patch-residual": settings}, create_detector(settings, build_encoder(settings.encoder, side))))
texture = skimage.data.brick()
if what == "measure":
    print(Costs.of(own, prompts=1).activations)
else:
    own.prompt(texture[:96, :96])
    size = lambda name: 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
    tiles = [tile for _ in range(8) for tile in own.cut(texture[:96, :96, None].repeat(3, 2))]
    before = size("VmRSS")
    own.conclude(own.encode(tiles), tiles)
    print(size("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "side", "count", "tiles"),
    [
        ("score", 3000, 1, "1x1"),
        ("score", 3000, 9, "1x1"),
        ("score", 3000, 4, "3x3"),
        ("score", 2000, 20, "2x2"),
        ("prompt", 3000, 1, "1x1"),
        ("prompt", 3000, 9, "1x1"),
        ("prompt", 3000, 2, "3x3"),
        ("prompt", 200, 1, "1x1"),
        ("prompt", 200, 16, "2x2"),
        ("prompt", 200, 48, "1x1"),
    ],
)
def test_the_memory_of_prompting_and_scoring_is_known_from_the_headers(what: str, side: int, count: int, tiles: str) -> None:
    """The peak of the packaged detector, in a process of its own, is within the estimate, and not far below."""
    command = [sys.executable, "-c", WORKING, what, str(side), str(count), *tiles.split("x")]
    peak, estimate = map(int, subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split())
    assert 0.25 * estimate < peak <= estimate, (peak, estimate)


WORKING = """
import io, sys, numpy as np
from PIL import Image
from changepair.flows.prediction.budget import return_freed_memory
from changepair.tasks.common.sheets import heated
from changepair.tasks.prediction.costs import Costs
from changepair.tasks.prediction.memory import needs_of
from changepair.tasks.prediction.predictor import Predictor
import tifffile  # not the decoder's memory
what, side, count, *tiles = sys.argv[1], *map(int, sys.argv[2:])
return_freed_memory()
own = Predictor.load()
own = Predictor(own.model.with_tiles(tuple(tiles)))
stream = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)).save(stream, "PNG", compress_level=1)
content = stream.getvalue()
costs, needs = Costs.of(own, prompts=16), [needs_of(content)] * count
small = np.zeros((200, 200, 3), np.uint8)
heated(small, small[..., 0].astype(np.float32), 1.0)  # not the library's memory
if what == "score":
    own.prompt(small)
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
if what == "score":
    estimate = costs.predicting(own, needs) + costs.activations
    for one in own.each([content] * count):
        heated(one.picture, one.map, own.top)
else:
    estimate = costs.prompting(needs)
    own.prompt([content] * count)
print(1024 * (kilobytes("VmHWM") - before), estimate)
"""


def test_a_service_that_is_ending_says_so(prompted: Predictor) -> None:
    app = make_app(prompted, {})
    with TestClient(app):
        pass
    client = TestClient(app)  # whose queue is closed
    for answer in (client.get("/ready"), client.post("/v1/predict", files=files(png(crop(0))))):
        assert answer.status_code == 503 and answer.headers["retry-after"] and "shutting down" in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "I;16", "RGB16", "F", "WEBP", "exif"])
def test_the_memory_of_a_picture_is_known_from_its_header(kind: str) -> None:
    """The peak of what numpy and Pillow really take, in a process of its own, is within the estimate, and not far below."""
    program = MEASURED.format(kind=kind)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    peak, estimate = map(int, result.stdout.split())
    assert 0.25 * estimate < peak <= estimate, (kind, peak / 3000**2, estimate / 3000**2)


MEASURED = """
import io, imagecodecs, numpy as np
from PIL import Image
from changepair.tasks.common.decoding import FULL, decode, to_picture
from changepair.tasks.prediction.memory import needs_of
kind, side, stream = {kind!r}, 3000, io.BytesIO()
if kind == "RGB16":
    stream.write(imagecodecs.png_encode(np.zeros((side, side, 3), np.uint16)))
else:
    exif = Image.Exif()
    exif[0x0112] = 6 if kind == "exif" else 1
    form = {{"CMYK": "JPEG", "F": "TIFF", "WEBP": "WEBP", "exif": "JPEG"}}.get(kind, "PNG")
    mode, about = {{"WEBP": "RGB", "exif": "RGB"}}.get(kind, kind), {{"exif": exif}} if kind == "exif" else {{}}
    Image.new(mode, (side, side)).save(stream, form, **about)
content = stream.getvalue()
import tifffile  # not the decoder's memory
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
to_picture(decode(content), FULL)
print(1024 * (kilobytes("VmHWM") - before), needs_of(content).decoding)
"""


@pytest.mark.parametrize(
    ("content", "data", "status", "message"),
    [
        ([b"no picture"], {}, 400, "picture 1 (0.png): not a supported picture format"),
        ([png(crop(0)), png(crop(1))[:900]], {}, 400, "picture 2 (1.png): truncated"),
        ([b"%!PS-Adobe-3.0 EPSF-3.0\n"], {}, 400, "not a supported picture format"),
        ([png(crop(0))] * 5, {}, 400, "5 pictures are more than the limit of 4"),
        ([png(crop(0))], {"kit": "line-9"}, 404, "unknown kit 'line-9'; available: default"),
        ([png(crop(0))], {"kit": "default", "prompts": "x"}, 400, "cannot be combined"),
        ([b"\0" * 2_100_000], {}, 413, "larger than 2,000,000 bytes"),
        ([], {}, 422, ""),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(
    prompted: Predictor, content: list[bytes], data: dict[str, str], status: int, message: str
) -> None:
    with TestClient(make_app(prompted, {}, limits=Limits(pictures=4, megabytes=2))) as client:
        answer = client.post("/v1/predict", files=files(*content), data=data)
        assert answer.status_code == status and message in str(answer.json()["detail"])
        assert client.post("/v1/predict", files=files(png(crop(0)))).status_code == 200  # and it goes on


def test_a_body_whose_length_is_not_announced_is_counted(prompted: Predictor) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="pictures"; filename="a.png"\r\n\r\n'
        for _ in range(64):
            yield b"\0" * 2**16

    with TestClient(make_app(prompted, {}, limits=Limits(megabytes=1))) as client:
        answer = client.post("/v1/predict", content=endless(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413 and "1,000,000 bytes" in answer.json()["detail"]


def test_a_token_is_asked_for_everywhere_but_where_a_probe_looks(prompted: Predictor) -> None:
    with TestClient(make_app(prompted, {}, token="s3cret")) as client:
        for method, path in (("post", "/v1/predict"), ("post", "/v1/prompts"), ("get", "/v1/kits"), ("get", "/metrics")):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
                assert getattr(client, method)(path, headers=headers).status_code == 401, path
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        right = {"Authorization": "Bearer s3cret"}
        assert client.post("/v1/predict", files=files(png(crop(0))), headers=right).status_code == 200


class Slow(Predictor):
    """Waits to be let on before it encodes; counts."""

    def __init__(self, of: Predictor) -> None:
        super().__init__(of.model, prompted=of.prompted)
        self.go, self.batches = threading.Event(), []

    def encode(self, tiles: Any) -> Any:
        self.batches.append(len(tiles))
        assert self.go.wait(30)
        return super().encode(tiles)


def soon(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_pictures_of_several_requests_are_scored_together_and_too_many_are_refused(prompted: Predictor) -> None:
    slow = Slow(prompted)
    app = make_app(slow, {}, limits=Limits(waiting=6), batch_size=4)
    with TestClient(app) as client, ThreadPoolExecutor(8) as pool:

        def ask(number: int) -> httpx.Response:
            return client.post("/v1/predict", files=files(png(crop(number))))

        first = pool.submit(ask, 0)
        soon(lambda: bool(slow.batches))
        others = [pool.submit(ask, number) for number in range(1, 7)]
        soon(lambda: "changepair_waiting_pictures 6.0" in client.get("/metrics").text)
        refused = ask(7)
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        slow.go.set()
        scores = [future.result().json()["predictions"][0]["score"] for future in (first, *others)]
    assert slow.batches == [1, 4, 2]
    assert scores == pytest.approx(prompted([crop(number) for number in range(7)]).scores, abs=1e-6)


def test_what_takes_too_long_is_given_up_and_not_scored_later(prompted: Predictor) -> None:
    slow = Slow(prompted)
    with TestClient(make_app(slow, {}, limits=Limits(seconds=0.3))) as client, ThreadPoolExecutor(2) as pool:
        late = [pool.submit(client.post, "/v1/predict", files=files(png(crop(number)))) for number in range(2)]
        assert [future.result().status_code for future in late] == [504, 504]
        slow.go.set()
        soon(lambda: "changepair_waiting_pictures 0.0" in client.get("/metrics").text)
        assert client.post("/v1/predict", files=files(png(crop(5)))).status_code == 200
    assert len(slow.batches) == 2


def test_tiles_and_prompts_of_many_make_batches_that_change_no_score(model: Named) -> None:
    prompts = ((crop(1), None), (crop(2), Grid(2, 2)), ([crop(3), crop(4)], None))
    owns = [Predictor(model).prompt(pictures, grid=grid) for pictures, grid in prompts]
    sizes: list[int] = []
    batcher = Batcher(batch_size=5, report=sizes.append)
    asked = [(own, as_picture(crop(number))) for number in range(6) for own in owns]
    futures = [batcher.submit(own, own.cut(picture)) for own, picture in asked]
    scores = [score_of(future.result()) for future in futures]
    batcher.close()
    assert scores == pytest.approx([own(picture).scores[0] for own, picture in asked], abs=1e-6)
    assert sum(sizes) == 6 * (1 + 4 + 1) and max(sizes) == 5
    with pytest.raises(Busy):
        batcher.submit(asked[0][0], [])


def test_a_batch_that_fails_is_told_and_the_next_is_scored(prompted: Predictor) -> None:
    batcher = Batcher()
    broken = Predictor(prompted.model, prompted=prompted.prompted)
    broken._memory = [torch.zeros(1)]
    assert batcher.submit(broken, broken.cut(as_picture(crop(0)))).exception(20) is not None
    assert score_of(batcher.submit(prompted, prompted.cut(as_picture(crop(0)))).result(20)) > 0
    batcher.close()


def test_no_request_that_the_schema_allows_or_forbids_is_the_servers_fault(prompted: Predictor) -> None:
    app = make_app(prompted, {})
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    tried = []
    for operation in schema.get_all_operations():
        api = operation.ok()

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
        @given(case=api.as_strategy())
        def ask(case: Any) -> None:
            tried.append(case.call_and_validate(checks=[not_a_server_error]).status_code)

        ask()
    assert len(tried) > 100 and {200, 422} <= set(tried)


# -- the process -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def server(folder: Path, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service in a process of its own, and its address."""
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "changepair"), "api", "--port", "0", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert " at http://127.0.0.1:" in line, line
        yield process, line.split(" at ")[1].split(";")[0]
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def kit(prompted: Predictor, tmp_path: Path) -> Path:
    prompted.save(tmp_path / "kits" / "line-3")
    return tmp_path / "kits" / "line-3"


def test_sigterm_ends_what_it_began(kit: Path, tmp_path: Path) -> None:
    with server(tmp_path, "--kit", str(kit), "--batch-size", "1") as (process, url), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{url}/v1/predict", files=files(*[png(crop(number)) for number in range(32)]), timeout=60)
        metrics = lambda: httpx.get(f"{url}/metrics").text  # noqa: E731
        soon(lambda: "changepair_batch_tiles_count 0.0" not in metrics())
        process.send_signal(signal.SIGTERM)
        answer = asked.result()
        assert answer.status_code == 200 and len(answer.json()["predictions"]) == 32
        assert process.wait(30) in (0, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


def test_a_port_that_is_taken_and_a_folder_without_kits_are_told_at_once(kit: Path, tmp_path: Path) -> None:
    with server(tmp_path, "--kits", str(kit.parent), "--model", "patch-residual") as (_process, url):
        assert httpx.get(f"{url}/v1/kits").json() == ["line-3"]
        command = [str(Path(sys.executable).parent / "changepair"), "api"]
        for arguments, message in (
            (["--port", url.rsplit(":", 1)[1]], "cannot listen at this address"),
            (["--kits", str(tmp_path)], "contains no kits"),
            (["--kit", str(tmp_path)], "is not a kit"),
            (["--most-waiting", "0"], "--most-waiting: between 1 and 2147483647, not 0"),
            (["--timeout", "nan"], "--timeout: between 0.001 and"),
            (["--host", "a" * 300], "cannot listen at this address"),
        ):
            result = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
            assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.slow
def test_ten_thousand_requests_of_16_clients(kit: Path, tmp_path: Path) -> None:
    """No error, and memory that does not grow; prints the times."""
    contents = [png(crop(number)) for number in range(20)]
    times: list[float] = []
    memory: list[int] = []
    with server(tmp_path, "--kit", str(kit)) as (process, url):
        own = psutil.Process(process.pid)

        def client(number: int) -> list[int]:
            codes = []
            with httpx.Client(timeout=60) as session:
                for request in range(625):
                    start = time.perf_counter()
                    answer = session.post(f"{url}/v1/predict", files=files(contents[(number + request) % 20]))
                    times.append(time.perf_counter() - start)
                    codes.append(answer.status_code)
                    if number == 0:
                        memory.append(own.memory_info().rss)
            return codes

        with ThreadPoolExecutor(16) as pool:
            codes = [code for codes in pool.map(client, range(16)) for code in codes]
        batches = {line.split()[0]: float(line.split()[1]) for line in httpx.get(f"{url}/metrics").text.splitlines() if line[0] != "#"}
    quantiles = statistics.quantiles(times, n=100)
    a_batch = batches["changepair_batch_tiles_sum"] / batches["changepair_batch_tiles_count"]
    settled = [np.mean(memory[start : start + 60]) / 2**20 for start in (65, 565)]
    print(
        f"{len(codes)} requests of 16 clients: p50 {1000 * quantiles[49]:.0f} ms, p99 {1000 * quantiles[98]:.0f} ms, "
        f"{16 * 625 / (sum(times) / 16):.0f} a second; {a_batch:.1f} a batch; memory {settled[0]:.0f} MiB, "
        f"{settled[1]:.0f} MiB 8,000 requests later"
    )
    assert set(codes) == {200} and settled[1] < 1.05 * settled[0]


@installed
def test_the_page_of_the_api_is_drawn_without_a_network(kit: Path, tmp_path: Path) -> None:
    with server(tmp_path, "--kit", str(kit)) as (_process, url), browser(tmp_path / "profile") as driver:
        driver.get(f"{url}/docs")
        within(30, lambda: "/v1/predict" in driver.find_element("css selector", "body").text)
        assert not [one for one in requests(driver) if "//127.0.0.1:" not in one]
