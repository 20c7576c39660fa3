"""Measures how fast pairs are made, on how much memory, and what an inpainted one costs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import cv2
import plain_draem
import pytest
import torch
from conftest import make_places

from changepair.tasks.common.photographs import Photographs
from changepair.tasks.common.pictures import read_picture
from changepair.tasks.common.randomness import generator
from changepair.tasks.common.rows import table_of, write_rows
from changepair.tasks.ingestion.ingest import ingest_packaged
from changepair.tasks.ingestion.manifest import PictureRow
from changepair.tasks.ingestion.objects.table import ObjectRow, write_objects
from changepair.tasks.inpainting.crop_pipeline import new_pipeline
from changepair.tasks.inpainting.inpainter import Inpainter, Own
from changepair.tasks.inpainting.settings import InpainterSettings, RepaintingSettings
from changepair.tasks.sampling.episodes import EpisodeFiles, read_pictures
from changepair.tasks.synthesis.changes import Materials
from changepair.tasks.synthesis.objects import Objects
from changepair.tasks.synthesis.pair import Maker
from changepair.tasks.synthesis.settings import GlobalKind, LocalKind, SynthesisSettings

pytestmark = pytest.mark.bench
FASTER = 10  # than plain NumPy, at least
SLOWEST = 15  # pairs a second of a local kind
RUNS = 5
MOST_MORE_MEMORY = 100  # MiB
LINEAR = 0.15  # how far the time a pair may move from 1,000 to 20,000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> EpisodeFiles:
    """The packaged photographs, as sampling leaves them."""
    folder = tmp_path_factory.mktemp("photos")
    ingest_packaged("sample-photos", places=make_places(folder / "manifests"))
    files = EpisodeFiles.of(folder / "episodes", "bench")
    rows = read_pictures(folder / "manifests" / "sample-photos.parquet")
    for file in (files.sources, files.textures):
        write_rows(file, PictureRow, rows)
    write_objects(files.objects, table_of(ObjectRow, []))
    return files


def maker(files: EpisodeFiles, settings: SynthesisSettings, inpainter: Inpainter | None = None) -> Maker:
    sources = Photographs([row.image for row in read_pictures(files.sources)], settings.crop, settings.resolution)
    return Maker(Materials(settings, sources, sources, Objects(settings.objects, sources, files.objects)), inpainter)


@pytest.fixture
def one_core() -> Iterator[None]:
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def a_pair(make: Callable[[], int]) -> float:
    """Seconds a pair."""
    start = time.perf_counter()
    pairs = make()
    return (time.perf_counter() - start) / pairs


def test_local_region_pairs_against_plain_numpy(files: EpisodeFiles, one_core: None) -> None:
    ours = maker(files, SynthesisSettings(resolution=256, kinds={"local-region": 1.0}))
    photos = [read_picture(Path(image)).astype(float) / 255 for image in ours.materials.sources.images]
    rng = generator(0, "plain")

    def plain(count: int) -> int:
        for _ in range(count):
            plain_draem.pair(photos, 256, rng)
        return count

    assert len(list(ours.make(range(64)))) == 64 and plain(2) == 2  # photographs decoded, caches warm
    times = []
    for run in range(1, RUNS + 1):
        numbers = range(1000 * run, 1000 * run + 200)
        times.append((a_pair(lambda numbers=numbers: len(list(ours.make(numbers)))), a_pair(lambda: plain(20))))
    ratio = statistics.median(slow / fast for fast, slow in times)
    ours_ms, plain_ms = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    print(f"\nlocal-region pairs at 256x256 on one core, medians of {RUNS}: {ours_ms:.1f} ms a pair, plain NumPy {plain_ms:.1f} ms:")
    print(f"{ratio:.1f} times faster (at least {FASTER})")
    assert ratio >= FASTER


def _made(ours: Maker, numbers: range) -> int:
    return len(list(ours.make(numbers)))


def test_throughput_of_each_local_kind(files: EpisodeFiles, one_core: None) -> None:
    """Whole pairs: crops of cached photographs, the defect, geometry and light. PNGs and shards are not included."""
    print(f"\npairs at 256x256 on one core, medians of {RUNS}:")
    slow = {}
    for kind in ("local-region", *get_args(LocalKind), *get_args(GlobalKind)):
        ours = maker(files, SynthesisSettings(resolution=256, kinds={kind: 1.0}))
        list(ours.make(range(20)))
        runs = (range(1000 * run, 1000 * run + 40) for run in range(1, RUNS + 1))
        rate = 1 / statistics.median(a_pair(partial(_made, ours, numbers)) for numbers in runs)
        print(f"| `{kind}` | {rate:.0f} |")
        slow |= {kind: rate} if rate < SLOWEST else {}
    assert not slow


MAKE_SHARDS = """
import json, resource, sys, time
from pathlib import Path
from changepair.tasks.sampling.episodes import EpisodeFiles
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.synthesis.synthesize import Inputs, finish, make_shard, start
episodes, folder, pairs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
settings = SynthesisSettings(pairs=pairs, resolution=256, kinds={"local-region": 1.0})
inputs = Inputs(EpisodeFiles.of(episodes, "bench"), folder / "none")
work, missing = start(settings, inputs, folder / "work")
begin = time.perf_counter()
for number in missing:
    make_shard(settings, inputs, number, work)
seconds = time.perf_counter() - begin
finish(settings, work, folder / "pairs")
print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def test_memory_is_the_same_and_time_linear_from_1000_to_20000_pairs(files: EpisodeFiles, tmp_path: Path) -> None:
    rates = {}
    for pairs in (1_000, 20_000):
        command = [sys.executable, "-c", MAKE_SHARDS, str(files.sources.parent), str(tmp_path / str(pairs)), str(pairs)]
        rates[pairs] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    (few, many) = (rates[pairs]["seconds"] / pairs for pairs in rates)
    print(f"\npairs with their shards, one process: {1e3 * few:.2f} ms a pair at 1,000, {1e3 * many:.2f} ms at 20,000;")
    print(f"peak memory {rates[1_000]['peak']:.0f} MiB and {rates[20_000]['peak']:.0f} MiB")
    assert abs(rates[20_000]["peak"] - rates[1_000]["peak"]) < MOST_MORE_MEMORY
    assert abs(many / few - 1) < LINEAR


@pytest.mark.parametrize("batch_size", [1, 16])
def test_what_an_inpainted_pair_costs(files: EpisodeFiles, one_core: None, batch_size: int) -> None:
    own, inpainting = InpainterSettings(), RepaintingSettings(batch_size=batch_size)
    settings = SynthesisSettings(resolution=128, kinds={"appearance": 0.5, "disappearance": 0.5}, inpainting=inpainting)
    pair_maker = maker(files, settings, Own(new_pipeline(own.resolution, own.channels), inpainting))
    list(pair_maker.make(range(16)))
    numbers = [range(100 * run, 100 * run + 32) for run in range(1, 4)]
    seconds = statistics.median(a_pair(lambda run=run: len(list(pair_maker.make(run)))) for run in numbers)
    print(f"\ninpainted pairs at 128x128 by the own model, one core, batches of {batch_size}: {1e3 * seconds:.0f} ms a pair")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_what_an_inpainted_pair_costs_on_a_gpu() -> None:
    """The own model, and Stable Diffusion's architecture at its full size, untrained: weights do not change the time."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    images, masks = torch.rand(16, 3, 256, 256), torch.zeros(16, 1, 256, 256)
    masks[:, :, 80:160, 90:170] = 1
    own = Own(new_pipeline(64, InpainterSettings().channels).to("cuda"), RepaintingSettings())
    unet = UNet2DConditionModel(sample_size=64, in_channels=9, cross_attention_dim=768)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12))
    pipeline = StableDiffusionInpaintPipeline(
        vae=vae, text_encoder=text, tokenizer=None, unet=unet, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).to("cuda", torch.bfloat16)  # fmt: skip

    def stable_diffusion() -> object:
        embedded = torch.zeros(16, 77, 768, device="cuda", dtype=torch.bfloat16)
        asked = {"prompt_embeds": embedded, "negative_prompt_embeds": embedded, "num_inference_steps": 30, "output_type": "pt"}
        return pipeline(image=images, mask_image=masks, height=512, width=512, **asked)

    own_model = lambda: own(images, masks, [""] * 16, list(range(16)))  # noqa: E731
    for name, work in {"own model": own_model, "Stable Diffusion, 30 steps at 512": stable_diffusion}.items():
        work()
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        print(f"\n{name} on {torch.cuda.get_device_name()}: {1e3 * (time.perf_counter() - start) / 16:.0f} ms a picture")
