"""Detectors that other installed packages register: the example of examples/detector, and packages that are wrong."""

from __future__ import annotations

import json
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, SMALL, TINY, make_pairs, make_project, run, write_pipelines
from predictors import predict, prompt_and_queries

from changepair.flows.plan import planned, roots
from changepair.flows.settings.pipelines import read_pipelines
from changepair.tasks.common import fingerprint
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.fingerprint import code_of
from changepair.tasks.common.tensors import read_tensors
from changepair.tasks.detectors import registry
from changepair.tasks.detectors.registry import DETECTORS, kind_of
from changepair.tasks.detectors.store import create_detector, load_model
from changepair.tasks.detectors.train import train
from changepair.tasks.encoders.build import build_encoder
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.prediction.models import named
from changepair.tasks.prediction.pictures import as_picture
from changepair.tasks.prediction.predictor import Predictor
from changepair.tasks.synthesis.settings import SynthesisSettings
from changepair.tasks.training.loop import Examples, TrainingFolders
from changepair.tasks.training.settings import PairTrainingSettings

NAME, MODULE = "channel-statistics", "changepair_channel_statistics"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip has installed the example into."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(ROOT / "examples/detector", folder / "source")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--target", str(folder / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(folder / "source")], check=True)
    return folder / "site"


def forget() -> None:
    """Forget which packages are installed: a process looks once."""
    for known in (registry.registered, registry._loaded, fingerprint._home, fingerprint._installed_names):
        known.cache_clear()
    for module in [name for name in sys.modules if name.partition(".")[0] in (MODULE, "other_package")]:
        del sys.modules[module]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of installed packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    forget()
    yield folder
    forget()


@pytest.fixture
def installed(site: Path, built: Path) -> Path:
    """The package of the example, installed, to be changed."""
    shutil.copytree(built, site, dirs_exist_ok=True)
    return site / MODULE


def install(site: Path, distribution: str, points: str, text: str | None = None) -> None:
    """Install a distribution by hand. points: its entry points; text: what is in its package `other_package`, None for no package."""
    about = site / f"{distribution}-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[changepair.detectors]\n{points}\n")
    if text is not None:
        (site / "other_package").mkdir()
        (site / "other_package" / "__init__.py").write_text(text)
    forget()


def pipelines(tmp_path: Path, detectors: dict[str, Any]) -> Path:
    small = {**SMALL["pipelines"]["small"], "detectors": detectors, "training": {}}  # type: ignore[index,dict-item]
    return write_pipelines(tmp_path, {**SMALL, "pipelines": {"small": small}})


def test_the_example_scores_as_its_formula_says_and_in_a_kit_too(installed: Path, layout: Path, tmp_path: Path) -> None:
    prompt, queries = prompt_and_queries(layout)
    prompts = [prompt, layout / "bricks/train/good/1.png"]
    own = Predictor(named(NAME)).prompt(prompts)
    pictures = [as_picture(query) for query in queries]
    scores = own(pictures).scores.tolist()
    encoder = build_encoder(EncoderSettings(), 256)
    features, kept = (encoder(read_tensors([str(one) for one in some], 256, "cpu", "squash"))[2].numpy() for some in (queries, prompts))
    expected = []
    for patches in features.astype(np.float64):
        means, squares = kept.mean(axis=(0, 2, 3)), (kept.astype(np.float64) ** 2).mean(axis=(0, 2, 3))
        deviation = ((patches - means[:, None, None]) ** 2 / (squares - means**2)[:, None, None]).mean(axis=0).max()
        expected.append(deviation / (1 + deviation))
    assert scores == pytest.approx(expected, abs=1e-3) and max(scores) - min(scores) > 0.01
    own.save(tmp_path / "kit")
    assert Predictor.load(tmp_path / "kit")(pictures).scores.tolist() == scores
    answer = predict("--model", NAME, "--prompt", prompt, queries[0])
    assert answer.returncode == 0 and str(queries[0]) in answer.stdout
    shutil.rmtree(installed.parent)
    installed.parent.mkdir()
    forget()
    with pytest.raises(BadInput, match=r"kit\.json: no detector 'channel-statistics' is installed; install the package that registers it"):
        Predictor.load(tmp_path / "kit")


READ = """
import sys
from changepair.flows.plan import planned
from changepair.flows.settings.pipelines import read_pipelines
from pathlib import Path
detectors = read_pipelines(Path(sys.argv[1])).pipelines["small"].detectors
stages = [stage.name for stage in planned(Path(sys.argv[1]).parent)]
assert {"score_small_" + name for name in detectors} <= set(stages)
assert "torch" not in sys.modules
print(sorted(name for name in sys.modules if name.startswith("changepair_channel")))
"""


def test_a_pipeline_is_read_without_torch_and_without_what_it_does_not_name(built: Path, tmp_path: Path) -> None:
    for detectors, imported in (({"mine": {"kind": NAME, "stage": 2}}, [MODULE]), ({"patch-residual": {}}, [])):
        file = pipelines(tmp_path, detectors)
        command = [sys.executable, "-c", READ, str(file)]
        read = subprocess.run(command, env={"PYTHONPATH": f"{ROOT}:{built}"}, cwd=tmp_path, capture_output=True, text=True)
        assert read.stdout.strip() == str(imported), read.stderr


def test_its_settings_are_checked_and_its_kind_is_known_from_them(installed: Path, tmp_path: Path) -> None:
    detectors = read_pipelines(pipelines(tmp_path, {NAME: {}, "fine": {"kind": NAME, "stage": 1}})).pipelines["small"].detectors
    assert (detectors[NAME].stage, detectors["fine"].stage) == (3, 1)
    registry.registered.cache_clear()  # as in a worker, which gets settings and has looked up no kind
    registry._loaded.cache_clear()
    assert kind_of(detectors["fine"]) == NAME
    for section, message in (
        ({NAME: {"stag": 1}}, r"detectors\.channel-statistics\.stag: unknown key; did you mean 'stage'\?"),
        ({NAME: {"stage": 0}}, r"channel-statistics\.stage: expected between 1 and 64, not 0"),
        ({"channel-statistic": {}}, "did you mean 'channel-statistics'"),
    ):
        with pytest.raises(BadInput, match=message):
            read_pipelines(pipelines(tmp_path, section))


def edited(file: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(package: Path) -> None:
        text = (package / file).read_text()
        assert old in text
        (package / file).write_text(text.replace(old, new))

    return edit


def helped(package: Path) -> None:
    """A module more, which the model imports as other packages do."""
    (package / "helper.py").write_text("FLOOR = 1e-6\n")
    edited("model.py", "from torch import Tensor\n", "from torch import Tensor\n\nfrom .helper import FLOOR\n")(package)


def test_scores_depend_on_the_code_of_its_package(installed: Path) -> None:
    def digest() -> str:
        return code_of(*roots("score", NAME)).digest

    code = code_of(*roots("score", NAME))
    assert {MODULE, f"{MODULE}.model", "changepair.tasks.detectors.store"} <= set(code.modules) and NAME not in str(code.packages)
    digests = [digest()]
    edited("model.py", '"""The model: torch only."""', "# only a comment")(installed)
    assert digest() == digests[0]
    for edit in (
        edited("model.py", "1 + maps", "2 + maps"),
        edited("__init__.py", "stage: Annotated[int, Between(1, 64)] = 3", "stage: Annotated[int, Between(1, 64)] = 2"),
        helped,
        edited("helper.py", "1e-6", "1e-5"),
    ):
        edit(installed)
        digests.append(digest())
    assert len(set(digests)) == 5
    assert NAME not in str(code_of(*roots("score", "patch-residual")).packages)


@pytest.mark.parametrize("hidden", ["model", "__init__"])
def test_scores_depend_on_the_version_of_a_package_whose_code_cannot_be_read(installed: Path, hidden: str) -> None:
    """Its modules are compiled: Cython's, or bytecode alone, as here."""
    source = installed / f"{hidden}.py"
    py_compile.compile(str(source), cfile=str(source.with_suffix(".pyc")))
    source.unlink()
    forget()
    before = code_of(*roots("score", NAME))
    assert before.packages["changepair-channel-statistics"] == "0.1.0" and f"{MODULE}.{hidden}" not in before.modules
    about = installed.parent / f"{MODULE}-0.1.0.dist-info" / "METADATA"
    about.write_text(about.read_text().replace("Version: 0.1.0", "Version: 0.1.1"))
    forget()
    after = code_of(*roots("score", NAME))
    assert after.packages["changepair-channel-statistics"] == "0.1.1" and after.digest != before.digest


def test_dvc_sees_a_change_of_the_package_in_a_pipeline_that_uses_it(installed: Path, tmp_path: Path) -> None:
    small = {**TINY["pipelines"]["small"], "detectors": {NAME: {"resolution": 64}, "patch-residual": {"resolution": 64}}}  # type: ignore[index,dict-item]
    folder = make_project(tmp_path / "project", {**TINY, "pipelines": {"small": small}})
    paths = {"PYTHONPATH": f"{folder}:{installed.parent}"}

    def recorded() -> dict[str, Any]:
        result = run(folder, "dvc", "repro", "code", **paths)
        assert result.returncode == 0, result.stdout + result.stderr
        return {file.name: json.loads(file.read_text()) for file in (folder / "data/code").glob("*.json")}

    assert run(folder, "changepair", "plan", **paths).returncode == 0
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    assert stages["code"]["always_changed"] and f"data/code/score_{NAME}.json" in stages[f"score_small_{NAME}"]["deps"]
    before = recorded()
    edited("model.py", "1 + maps", "2 + maps")(installed)
    after = recorded()
    assert {name for name in after if after[name] != before[name]} == {f"score_{NAME}.json"}


GOOD = (ROOT / "examples/detector" / MODULE / "__init__.py").read_text().replace(MODULE, "other_package")


POINT = "mine = other_package:KIND"


@pytest.mark.parametrize(
    ("points", "text", "message"),
    [
        ("metauas = other_package:KIND", GOOD, "package other: registers a detector 'metauas', as changepair does; rename it"),
        (POINT, "import none_such", "package other: its detector 'mine', other_package:KIND, cannot be imported .*none_such.*; fix"),
        ("mine = other_package:KINT", GOOD, "cannot be imported .AttributeError: .*KINT.*; fix or uninstall it"),
        (POINT, "KIND = 1", r"cannot be used: expected a changepair\.tasks\.detectors\.registry\.Kind, not a int"),
        (
            POINT,
            GOOD.replace('"other_package.model', '"elsewhere.model'),
            "expected settings and a model in the same package, other_package",
        ),
        (POINT, GOOD.replace("    tiles: Tiles", "    cut: Tiles"), "expected settings with tiles"),
        ("my_own = other_package:KIND", GOOD, "expected a name of at most 64 lower-case letters, digits and dashes"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line_and_only_where_it_is_named(
    site: Path, tmp_path: Path, points: str, text: str, message: str
) -> None:
    kind = points.partition(" ")[0]
    install(site, "other", points, text)
    with pytest.raises(BadInput, match=message) as caught:
        read_pipelines(pipelines(tmp_path, {kind: {}}))
    assert "\n" not in str(caught.value) and f"pipelines.small.detectors.{kind}" in str(caught.value)
    with pytest.raises(BadInput, match=message):
        DETECTORS[kind]
    if kind != "metauas":
        assert "score_small_metauas" in [stage.name for stage in planned(pipelines(tmp_path, {"metauas": {"model": "packaged"}}).parent)]


def test_two_packages_with_one_name_and_a_model_that_is_not_there_are_told(site: Path, installed: Path, tmp_path: Path) -> None:
    install(site, "other", "mine = other_package:KIND", GOOD)
    with pytest.raises(BadInput, match=r"detector mine: other_package\.model:ChannelStatistics cannot be imported .*fix or uninstall"):
        create_detector(DETECTORS["mine"].settings())
    install(site, "another", f"{NAME} = other_package:KIND")
    with pytest.raises(BadInput, match="packages another, changepair-channel-statistics: each registers a detector 'channel-statistics'"):
        read_pipelines(pipelines(tmp_path, {NAME: {}}))


LEARNS = """
from dataclasses import dataclass
from changepair.tasks.common.bounds import STRICT
from changepair.tasks.common.tiles import Tiles
from changepair.tasks.detectors.registry import Kind, Training
from changepair.tasks.encoders.settings import EncoderSettings
from changepair.tasks.training.settings import PairTrainingSettings

@dataclass(frozen=True)
class Settings:
    __pydantic_config__ = STRICT
    model: str | None = None
    encoder: EncoderSettings = EncoderSettings()
    resolution: int = 64
    tiles: Tiles = "auto"

KIND = Kind(Settings, "other_package.model:Model", Training(PairTrainingSettings, "changepair.tasks.training.segmentation"))
"""
MODEL = """
from torch import nn
from changepair.tasks.detectors.detector import Detector, upsample

class Model(Detector):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Conv2d(encoder.channels[2], 1, 1)

    def forward(self, queries, prompts):
        difference = (self.encoder(queries)[2] - self.encoder(prompts)[2]).abs()
        return upsample(self.head(difference)[:, 0], queries.shape[-2:])
"""


def test_a_detector_of_another_package_is_trained_and_resumes_only_what_its_own_code_began(
    site: Path, layout: Path, tmp_path: Path
) -> None:
    install(site, "other", "learner = other_package:KIND", LEARNS)
    (site / "other_package" / "model.py").write_text(MODEL)
    synthesis = SynthesisSettings(pairs=40, pairs_per_shard=20, resolution=64, kinds={"local-region": 0.9, "none": 0.1}, held_out=0.1)
    examples = Examples(make_pairs(layout, synthesis, layout.parent / "pairs"), synthesis.augmentation)
    places = TrainingFolders(tmp_path / "learner", tmp_path / "checkpoints")
    detector, settings = DETECTORS["learner"].settings(), PairTrainingSettings(epochs=4, batch_size=12, learning_rate=0.01, log_every=1)
    shares: list[float] = []

    def stop(share: float) -> None:
        shares.append(share)
        if share > 0.5:
            raise KeyboardInterrupt

    settings = replace(settings, checkpoint_every=1, precision="no")
    for model, first in ((MODEL, 1 / 12), (MODEL, 7 / 12), (MODEL.replace("channels[2]", "channels[-3]"), 1 / 12)):
        (site / "other_package" / "model.py").write_text(model)
        shares.clear()
        with pytest.raises(KeyboardInterrupt):
            train(detector, settings, examples=examples, places=places, workers=0, report=stop)
        assert shares[0] == pytest.approx(first)
    trained = train(detector, settings, examples=examples, places=places, workers=0)
    assert trained.steps == 12 and json.loads((places.model_folder / "config.json").read_text())["detector"] == "learner"
    load_model(places.model_folder, create_detector(detector))
