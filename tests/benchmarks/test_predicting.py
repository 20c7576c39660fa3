"""Measures how fast pictures are scored: by the command, as whole processes, and by ONNX Runtime beside PyTorch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from timing import medians

from changepair.tasks.ingestion.texture_defects import write
from changepair.tasks.prediction.export import export
from changepair.tasks.prediction.predictor import Predictor

pytestmark = pytest.mark.bench
FIRST_ANSWER = {"packaged": 3.0, "metric-residual": 3.0, "metauas": 10.0}  # seconds, at most; the decoder of MetaUAS imports smp
RATE = 15.0  # pictures a second, at least
RUNS = 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("textures")
    write(folder)
    return sorted(folder.rglob("*/*/*/*.png"))[:201]


@pytest.mark.parametrize("model", ["packaged", "metric-residual", "metauas"])
def test_the_first_answer_and_those_after_it(pictures: list[Path], model: str, tmp_path: Path) -> None:
    """At 256x256, reading included; the start of the process is in the first."""

    def seconds(count: int) -> float:
        command = [str(Path(sys.executable).parent / "changepair"), "predict", "--model", model, "--prompt", str(pictures[0])]
        start = time.perf_counter()
        subprocess.run([*command, *map(str, pictures[1 : 1 + count])], check=True, capture_output=True, cwd=tmp_path)
        return time.perf_counter() - start

    times = {count: sorted(seconds(count) for _ in range(RUNS))[RUNS // 2] for count in (1, 200)}
    rate = 199 / (times[200] - times[1])
    print(f"\n{model}: first answer after {times[1]:.1f} s, then {rate:.0f} pictures a second")
    assert times[1] <= FIRST_ANSWER[model] and rate >= RATE


@pytest.mark.parametrize("model", ["packaged", "metric-residual", "metauas"])
def test_onnx_runtime_beside_pytorch(model: str, tmp_path: Path) -> None:
    """Eight pictures at the detector's resolution against one prompt inside, two threads."""
    torch.set_num_threads(2)
    random = np.random.default_rng(0).random((8, 96, 96, 3), dtype=np.float32)
    own = Predictor.load(model).prompt(random[0])
    side = own.model.looks.resolution
    queries = torch.nn.functional.interpolate(torch.from_numpy(random).permute(0, 3, 1, 2), (side, side))
    memory, detector = [part[0] for part in own.prompted.memory], own.detector
    with torch.inference_mode():
        detector.score(queries, memory)
    export(Predictor.load(model).prompt(random[0]), tmp_path, "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options)

    @torch.inference_mode()
    def by_torch() -> None:
        detector.score(queries, memory)

    ours, theirs = medians(lambda: session.run(None, {"queries": queries.numpy()}), by_torch)
    print(f"\n{model}: ONNX Runtime {1000 * ours / 8:.1f} ms a picture, PyTorch {1000 * theirs / 8:.1f}, {theirs / ours:.2f} times as fast")
    assert ours < 1.2 * theirs
