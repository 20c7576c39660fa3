"""Small real pictures and a small real project that tests share."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import skimage.data
import torch
import yaml
from PIL import Image
from pydantic import TypeAdapter
from servers import AUTHENTICATION, ask, prefect_server

os.environ["PREFECT_API_AUTH_STRING"] = AUTHENTICATION  # before Prefect reads its settings
from prefect.events.worker import EventsWorker

from changepair.flows.plan import write_plan
from changepair.flows.settings.pipelines import Pipelines
from changepair.flows.settings.reader import parse
from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.rows import table_of, write_rows
from changepair.tasks.detectors.registry import DETECTORS
from changepair.tasks.ingestion.check import check, row
from changepair.tasks.ingestion.ingest import IngestionFolders
from changepair.tasks.ingestion.listing import DatasetFolder, ListedPicture
from changepair.tasks.ingestion.manifest import PictureRow
from changepair.tasks.ingestion.objects.table import ObjectRow, write_objects
from changepair.tasks.inpainting.inpainter import write_choice
from changepair.tasks.inpainting.settings import InpainterSettings
from changepair.tasks.sampling.episodes import EpisodeFiles
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.synthesis.synthesize import Inputs, finish, make_shard, start

if TYPE_CHECKING:
    from team import Team

    from changepair.tasks.scoring.score import Contender

ROOT = Path(__file__).parent.parent
os.environ["DVC_NO_ANALYTICS"] = "true"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"


SHARED = ("retrained", "team")
"""Fixtures that take a minute or more, the longest first."""


def pytest_itemcollected(item: Any) -> None:
    """Let one process have all tests that share a fixture of `SHARED`, or a module: `--dist loadgroup`."""
    group = next((name for name in SHARED if name in item.fixturenames), item.module.__name__)
    item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Begin with the groups that take the longest, as they would otherwise be at work alone in the end."""
    items.sort(key=lambda item: next((place for place, name in enumerate(SHARED) if name in item.fixturenames), len(SHARED)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says how many attacks were tried, where there were any."""
    hostile = sys.modules.get("hostile")
    for line in hostile.summary() if hostile is not None else ():
        terminalreporter.write_line(line)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Prefect server, of the module's own."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as url:
        EventsWorker.drain_all(at_exit=False)  # else this process would send its events to the server of another module, which is gone
        yield url


@pytest.fixture(scope="session")
def api_of_retrained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the real Prefect server beside which `retrained` was made."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as url:
        yield url


@pytest.fixture(scope="session")
def retrained(tmp_path_factory: pytest.TempPathFactory, api_of_retrained: str) -> Path:
    """A project whose small pipeline was retrained once, committed. Not to be changed: `copied` gives a copy that can be."""
    folder = make_project(tmp_path_factory.mktemp("run") / "project")
    result = run(folder, "changepair", "retrain", "small", PREFECT_API_URL=api_of_retrained)
    assert result.returncode == 0, result.stdout + result.stderr
    # A line a milestone: no stage's own bar, and no word of the processes that share its work.
    assert not re.search(r"(step|batch)/s|s/(step|batch)|INFO", result.stderr), result.stderr
    commit(folder)
    return folder


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """A team whose pipeline was run twice by a worker of a work pool: anew, and after a change to the evaluation. The server is running."""
    from team import Team

    top = tmp_path_factory.mktemp("team")
    with prefect_server(top / "prefect") as url:
        team = Team(top, url, {"pool": "machines", "tags": ["line-3"]}, [str(top / "remote")])
        result = run(team.project, "changepair", "deploy", PREFECT_API_URL=url)
        assert result.returncode == 0 and "created: work pool machines" in result.stdout, result.stdout + result.stderr
        team.run_by_a_worker()
        team.second = team.change()
        team.run_by_a_worker()
        team.runs = ask(url, "flow_runs")
        yield team


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Gives torch its threads back after each test: with another number of them a training comes to other weights."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def polite(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes this process remember SIGTERM, as a stage does, until the test has ended."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(stopping, "_asked", threading.Event())
    with stopping.on_sigterm():
        yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def small_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished pairs, made by `changepair pairs build`. Not to be changed."""
    from finished import build_small, photographs_in

    top = tmp_path_factory.mktemp("small")
    build_small(photographs_in(top / "pictures"), top / "pairs")
    return top / "pairs"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return make_layout(tmp_path / "parts")


def make_layout(folder: Path) -> Path:
    """A dataset of two categories in MVTec AD's layout, of crops of real textures; each picture differs from every other."""
    for category, photo in (("bricks", skimage.data.brick()), ("stones", skimage.data.gravel())):
        for number in range(4):
            save(photo[64 * number :][:96, :96], folder / category / "train" / "good" / f"{number}.png")
        for number in range(2):
            crop = photo[64 * number :][:96, 200:296].copy()
            save(crop, folder / category / "test" / "good" / f"{number}.png")
            mask = np.zeros((96, 96), dtype=np.uint8)
            mask[30:50, 40:70] = 255
            save(np.where(mask > 0, 255 - crop, crop), folder / category / "test" / "hole" / f"{number}.png")
            save(mask, folder / category / "ground_truth" / "hole" / f"{number}_mask.png")
    return folder


def save(pixels: np.ndarray, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


SMALL = {
    "enabled": ["small"],
    "datasets": {
        "packaged": ["sample-photos"],
        "folders": {"parts": {"path": "parts"}},
        "objects": {"sample-photos": {"format": "masks", "path": "masks"}},
    },
    "execution": {"workers": 2},
    "pipelines": {
        "small": {
            "sources": ["sample-photos"],
            "textures": [],
            "auxiliary": [],
            "targets": ["parts"],
            "inpainter": {"steps": 4, "batch_size": 2, "resolution": 32, "channels": [8, 32]},
            "synthesis": {"pairs": 24, "pairs_per_shard": 8, "resolution": 64, "inpainting": {"batch_size": 4, "steps": 2}},
            "sampling": {"shots": [1, 2], "seeds": [0, 1]},
            "detectors": {
                "patch-residual": {"resolution": 64},
                "metauas": {"resolution": 64, "decoder_channels": [16, 16, 16, 16, 16]},
                "inctrl": {"resolution": 64, "encoder": {}, "texts": False},
            },
            "training": {
                "metauas": {"epochs": 1, "batch_size": 4, "learning_rate": 0.001, "log_every": 2},
                "inctrl": {"examples": "pairs", "epochs": 2, "batch_size": 4, "log_every": 2},
            },
            "evaluation": {"resolution": 64},
        }
    },
}


STAGES = [
    "code",
    "ingest_sample-photos",
    "objects_sample-photos",
    "ingest_parts",
    "sample_small",
    "inpainter_small",
    "synthesize_small",
    "train_small_metauas",
    "train_small_inctrl",
    "score_small_patch-residual",
    "score_small_metauas",
    "score_small_inctrl",
    "metrics_small",
    "report_small",
]
"""Of SMALL, in order."""

TINY = {
    **SMALL,
    "datasets": {"packaged": [], "folders": {"parts": {"path": "parts"}}, "objects": {}},
    "pipelines": {
        "small": {
            **SMALL["pipelines"]["small"],  # type: ignore[index,dict-item]
            "sources": [],
            "inpainter": {"model": "none"},
            "synthesis": {"pairs": 0},
            "detectors": {"patch-residual": {"resolution": 64}},
            "training": {},
        }
    },
}
"""As SMALL, and nothing is trained: half a minute in all."""


def make_project(folder: Path, content: object = SMALL) -> Path:
    """A checkout of this project, with a small pipeline over real pictures and nothing made yet."""
    (folder / ".dvc").mkdir(parents=True)
    for name in (
        "changepair",
        "flows",
        "tasks",
        "pyproject.toml",
        "requirements.lock",
        ".dvcignore",
        ".gitignore",
        ".dvc/config",
        ".dvc/plots",
    ):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, folder / name)
    make_layout(folder / "parts")
    cup = np.zeros((400, 600), dtype=np.uint8)  # of the photograph coffee, 400x600
    cup[110:290, 170:420] = 255
    save(cup, folder / "masks" / "coffee.png")
    write_pipelines(folder, content)
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main"], cwd=folder, check=True)
    return folder


LINKED = 2**20  # bytes from which a copy of a project shares a file: what is so large is never written in place


def copied(project: Path, folder: Path) -> Path:
    """A copy of a project, with what was made in it and DVC's cache, that can be changed."""

    def copy(source: str, target: str) -> None:
        if os.path.getsize(source) >= LINKED and not os.path.islink(source):
            os.link(source, target)
        else:
            shutil.copy2(source, target, follow_symlinks=False)

    shutil.copytree(project, folder, copy_function=copy, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def commit(folder: Path, message: str = "a run") -> str:
    """Commits everything there is; gives the commit."""
    author = ("-c", "user.name=changepair", "-c", "user.email=changepair@localhost")
    for arguments in (("add", "--all"), (*author, "commit", "--quiet", "--allow-empty", "--message", message)):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def with_every_key() -> dict[str, Any]:
    """SMALL with every detector, in which each setting that has a default is written too."""
    content: Any = copy.deepcopy(SMALL)
    small = content["pipelines"]["small"]
    prior = {"library": "open_clip", "name": "ViT-B-16-plus-240", "weights": "laion400m_e32"}
    small["detectors"] = {**{name: {} for name in DETECTORS}, **small["detectors"], "metauas+": {"prior": prior}}
    small["training"] |= {
        name: {"batch_size": 4, "epochs": 1} for name, kind in DETECTORS.items() if kind.training and name not in small["training"]
    }
    small |= {"schedule": "0 3 * * 1", "watch": {"folder": "new", "prompts": "good", "normals": "good", "schedule": "0 * * * *"}}
    given: dict[str, Any] = TypeAdapter(Pipelines).dump_python(parse(Pipelines, content), mode="json")
    return given


def write_pipelines(folder: Path, content: object) -> Path:
    """pipelines.yaml, and of one without a mistake dvc.yaml too, as `changepair plan` writes it."""
    file = folder / "pipelines.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    with suppress(BadInput):
        write_plan(folder)
    return file


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of this environment in `folder`, whose own code it imports; its output is in stdout and stderr."""
    bin_ = Path(sys.executable).parent
    variables = {
        **os.environ,
        "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "PREFECT_LOGGING_LEVEL": "WARNING",
        **environment,
    }
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=1800)


def make_places(manifests: Path) -> IngestionFolders:
    """Gives the folders that ingestion writes to, beside a folder of manifests."""
    return IngestionFolders(manifests.parent / "pictures", manifests, manifests.parent / "checkpoints")


def make_inputs(layout: Path, inpainter: Path | None = None, objects: list[ObjectRow] | None = None) -> Inputs:
    """The files that synthesis reads, for the normal training pictures of a layout."""
    images = sorted(layout.rglob("train/good/*.png"))
    source = DatasetFolder("parts", layout, layout.parent / "pictures")
    items = [ListedPicture(image, "c", "train", "good") for image in images]
    rows = [row(item, check(item, source), source, "own") for item in items]
    files = EpisodeFiles.of(layout.parent / "episodes", "small")
    for file in (files.sources, files.textures):
        write_rows(file, PictureRow, rows)
    write_objects(files.objects, table_of(ObjectRow, objects or []))
    return Inputs(files, inpainter or layout.parent / "no-inpainter")


def make_pairs(layout: Path, settings: SynthesisSettings, folder: Path) -> Path:
    """Change pairs of the normal training pictures of a layout, in `folder`."""
    inputs = make_inputs(layout)
    work, missing = start(settings, inputs, folder.with_suffix(".work"))
    for number in missing:
        make_shard(settings, inputs, number, work)
    finish(settings, work, folder)
    return folder


def scored(contenders: list[Contender], files: EpisodeFiles, folder: Path, batch_size: int = 32) -> dict[str, Path]:
    """The contenders' scores on disk, by detector; those of one encoder and resolution are made in one pass."""
    from changepair.tasks.scoring.score import score

    folders = {contender.name: folder / contender.name for contender in contenders}
    passes: dict[tuple[int, int], list[Contender]] = {}
    for contender in contenders:
        passes.setdefault((id(contender.detector.encoder), contender.resolution), []).append(contender)
    for together in passes.values():
        score(together, files, {one.name: folders[one.name] for one in together}, batch_size=batch_size, device=torch.device("cpu"))
    return folders


def make_inpainter(folder: Path) -> Path:
    """Writes what the inpainter stage leaves, with a small model of our own that has learnt nothing yet: it paints a smooth fill."""
    from changepair.tasks.inpainting.crop_pipeline import new_pipeline

    torch.manual_seed(0)
    pipeline = new_pipeline(32, (8, 32))
    torch.nn.init.normal_(pipeline.unet.conv_out.weight, std=0.01)  # and some grain, so that the seed shows
    pipeline.save_pretrained(folder / "pipeline")
    write_choice(folder, InpainterSettings())
    return folder


CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def make_clip(folder: Path) -> str:
    """A real open_clip model, small and untrained, in a folder as its authors publish theirs; gives the name to load it by."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {}}))
    save_file(open_clip.CLIP(**CLIP).state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def make_stable_diffusion(folder: Path) -> Path:
    """A real Stable Diffusion inpainting pipeline, small, from its parts' configurations; untrained."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = folder.parent / "vocabulary"
    vocabulary.mkdir(parents=True)
    (vocabulary / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (vocabulary / "merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1, vocab_size=len(words), max_position_embeddings=77
    )
    pipeline = StableDiffusionInpaintPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            norm_num_groups=4,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt"), model_max_length=77),
        unet=UNet2DConditionModel(
            sample_size=32,
            in_channels=9,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder
