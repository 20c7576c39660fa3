"""The core: the wheel with the dependencies that it declares uses a model, and says which extra the rest needs."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
import skimage.data
from core import build_wheel, environment
from PIL import Image

API = """
from changepair import Kit, Predictor, list_detectors, load_detector
scores, maps = Predictor.load().prompt("normal.png")(["part.png"])
print(f"{scores[0]:.6f}", maps[0].shape, Kit.load("kit").model.name, len(list_detectors()) > 3, load_detector("subspace").needs_prompts)
"""
NOT_POSIX = """
import builtins, os, signal, sys
BLOCKED = {"fcntl", "grp", "pwd", "resource", "termios", "tty", "syslog"}
inner = builtins.__import__
def guarded(name, globals=None, *rest, **named):
    if name in BLOCKED and (globals or {}).get("__name__", "").startswith("changepair"):
        raise ModuleNotFoundError(f"No module named {name!r} on Windows", name=name)
    return inner(name, globals, *rest, **named)
builtins.__import__ = guarded
HIDDEN = ((os, ("killpg", "fork", "setsid", "mkfifo")), (signal, ("SIGKILL", "SIGHUP", "pthread_sigmask", "sigwait")))
for module, names in HIDDEN:
    for name in names:
        delattr(module, name)
from changepair.flows.__main__ import main
sys.argv = ["changepair", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("core") / "environment", wheel)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with pictures and nothing else."""
    texture = skimage.data.gravel()
    (tmp_path / "normals").mkdir()
    for place in range(4):
        Image.fromarray(texture[64 * place : 64 * place + 64, 64:128]).save(tmp_path / "normals" / f"{place}.png")
    Image.fromarray(texture[:64, :64]).save(tmp_path / "normal.png")
    Image.fromarray(texture[256:320, :64]).save(tmp_path / "part.png")
    return tmp_path


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(python), *arguments], cwd=folder, env=variables, capture_output=True, text=True)


def test_the_wheel_holds_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        names = set(archive.namelist())
    assert {top for top in tops if not top.endswith(".dist-info")} == {"changepair"}
    assert {"changepair/py.typed", "changepair/tasks/packaged/metauas.safetensors", "changepair/flows/__main__.py"} <= names


def test_the_core_predicts_calibrates_and_uses_kits_in_an_empty_folder(core: Path, pictures: Path) -> None:
    command = str(core.parent / "changepair")
    calibrated = ("--calibrate", "normals", "--false-alarms", "0.3", "--write-kit", "kit")
    first = subprocess.run(
        [command, "predict", "--prompt", "normal.png", *calibrated, "part.png"], cwd=pictures, capture_output=True, text=True
    )
    assert first.returncode in (0, 1) and "part.png" in first.stdout, first.stderr
    by_kit = run(
        core, pictures, "-m", "changepair.flows", "predict", "--kit", "kit", "part.png", "--out", "out", "--overlays", "--maps", "png"
    )
    assert by_kit.returncode == first.returncode and by_kit.stdout == first.stdout, by_kit.stderr
    assert (pictures / "out" / "scores.csv").is_file()
    api = run(core, pictures, "-c", API)
    assert api.returncode == 0, api.stderr
    assert api.stdout.split()[0] in first.stdout and api.stdout.endswith("True True\n")
    loaded = "import sys, changepair; changepair.Predictor; print({'prefect', 'dvc', 'diffusers', 'transformers', 'cv2'} & {*sys.modules})"
    assert run(core, pictures, "-c", loaded).stdout == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (("retrain", "mine"), "prefect", "pipelines"),
        (("demo",), "gradio", "serve"),
        (("api",), "uvicorn", "serve"),
        (("export", "--out", "model.onnx", "--prompt", "normal.png"), "onnx", "export"),
        (("ui",), "starlette", "pipelines"),
        (("retrain", "mine", "--dry-run"), "dvc", "pipelines"),
    ],
)
def test_a_command_without_its_extra_names_it(arguments: tuple[str, ...], module: str, extra: str, core: Path, pictures: Path) -> None:
    (pictures / "parts" / "train" / "good").mkdir(parents=True)
    (pictures / "pipelines.yaml").write_text(PIPELINES)
    said = run(core, pictures, "-m", "changepair.flows", *arguments)
    assert said.returncode == 2 and f"`pip install 'changepair[{extra}]'`" in said.stderr.splitlines()[-1], said.stderr
    assert "Traceback" not in said.stderr and module in said.stderr


def test_the_core_needs_nothing_that_only_posix_has(core: Path, pictures: Path) -> None:
    said = run(core, pictures, "-c", NOT_POSIX, "predict", "--prompt", "normal.png", "part.png", "--out", "out", "--overlays")
    assert said.returncode == 0 and "part.png" in said.stdout, said.stderr


PIPELINES = """
enabled: [mine]
datasets: {folders: {parts: {path: parts, licence: in-house}}}
pipelines:
  mine:
    sources: []
    textures: []
    auxiliary: []
    targets: [parts]
    inpainter: {model: none}
    synthesis: {pairs: 0}
    sampling: {}
    detectors: {patch-residual: {}}
    training: {}
    evaluation: {}
"""
