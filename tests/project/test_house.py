"""The rules that keep the house one: which part may know which, and where code and plan are said."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import get_args

import pytest
from conftest import ROOT

from changepair.flows.plan import OF_A_DATASET, OF_A_PIPELINE, dvc_yaml, planned, roots
from changepair.flows.settings.pipelines import PackagedName
from changepair.tasks.common import fingerprint
from changepair.tasks.common.fingerprint import BENEATH, CARRIERS, Mismatch, code_of, mismatches, versions_of
from changepair.tasks.detectors.registry import DETECTORS
from changepair.tasks.ingestion.packaged import PACKAGED

PATCH = "changepair.tasks.detectors.residual.patch"
MADE_OF = {"metric-residual": {PATCH}, "metauas+": {PATCH, "changepair.tasks.detectors.winclip.model"}}
"""Models of other detectors that a detector is made of."""
STAGES = ("ingestion", "sampling", "inpainting", "synthesis", "training", "scoring", "reporting")


def imported(file: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports when it is imported."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_the_work_knows_neither_prefect_nor_dvc_nor_what_runs_it() -> None:
    for file in (ROOT / "tasks").rglob("*.py"):
        assert not {"prefect", "dvc", "pydantic"} & {name.partition(".")[0] for name in imported(file)}, file
        assert not [name for name in imported(file) if name.startswith("changepair.flows")], file
        assert file.name != "__init__.py" or file.stat().st_size == 0 or file.parent == ROOT / "tasks", file


ONEDNN = "changepair.tasks.common.onednn"
"""Operators in the place of PyTorch's. An environment variable switches them off, so the module imports os, but reads no file."""
NO_MODELS = {"__init__", "settings", "train"}
"""Modules of a detector's folder that are no models."""


def models() -> list[Path]:
    """Modules of networks: those of each detector, what they share, and the encoders."""
    tasks = ROOT / "tasks"
    shared = [tasks / "encoders" / f"{name}.py" for name in ("encoder", "clip", "lite", "smp_networks", "texts", "timm_networks")]
    shared += [tasks / "detectors" / f"{name}.py" for name in ("appearance", "detector", "patches")]
    return shared + [file for file in tasks.glob("detectors/*/*.py") if file.stem not in NO_MODELS]


def test_the_models_know_no_files_and_no_settings() -> None:
    allowed = {".".join(("changepair", *file.relative_to(ROOT).with_suffix("").parts)) for file in models()} | {ONEDNN}
    assert len(allowed) > 13
    for file in models():
        assert {name for name in imported(file) if name.startswith("changepair.tasks.")} <= allowed, file
        assert not {"pathlib", "os", "io", "json"} & set(imported(file)), file


def test_the_training_engine_knows_no_detector() -> None:
    for file in (ROOT / "tasks" / "training").glob("*.py"):
        assert not [name for name in imported(file) if name.startswith(("changepair.tasks.detectors", "changepair.tasks.packaged"))], file


def test_a_detector_is_one_folder() -> None:
    """A folder has settings and models, and a training where there is one of its own; only the registry knows which there are."""
    folders = {f"changepair.tasks.detectors.{file.parent.name}." for file in (ROOT / "tasks").glob("detectors/*/settings.py")}
    assert {f"{module.rpartition('.')[0]}." for kind in DETECTORS.values() for module in kind.modules} == folders
    for file in (*ROOT.glob("tasks/**/*.py"), *ROOT.glob("flows/**/*.py")):
        if file.parent.parent != ROOT / "tasks" / "detectors" and file.name != "registry.py":
            assert not [name for name in imported(file) if name.startswith(tuple(folders))], file


def test_a_stage_uses_what_comes_before_it_only() -> None:
    """Data flows one way. (Training builds on how pairs are stored, the metrics on how scores are, and so on; never the reverse.)"""
    for place, stage in enumerate(STAGES):
        for file in (ROOT / "tasks" / stage).rglob("*.py"):
            used = {name.split(".")[2] for name in imported(file) if name.startswith("changepair.tasks.")}
            assert not used & set(STAGES[place + 1 :]), file


def test_the_work_imports_where_prefect_dvc_and_diffusers_are_not_installed() -> None:
    """A bare GPU node is such a place: every module of tasks/ but the one that is a class of diffusers."""
    modules = [
        ".".join(("changepair", *file.relative_to(ROOT).with_suffix("").parts))
        for file in sorted((ROOT / "tasks").rglob("*.py"))
        if file.name not in ("__init__.py", "crop_pipeline.py")
    ]
    blocked = "import sys\nfor name in ('prefect', 'dvc', 'diffusers', 'pydantic', 'changepair.flows'): sys.modules[name] = None\n"
    subprocess.run([sys.executable, "-c", blocked + "\n".join(f"import {module}" for module in modules)], cwd=ROOT, check=True)


def test_the_committed_dvc_yaml_is_as_pipelines_yaml_has_it() -> None:
    assert (ROOT / "dvc.yaml").read_text() == dvc_yaml(planned(ROOT))


def test_every_packaged_dataset_can_be_named() -> None:
    assert get_args(PackagedName) == tuple(PACKAGED)


def test_settings_are_read_without_torch() -> None:
    """`changepair pipelines` and the plan stay quick."""
    program = "import sys; import changepair.flows.plan; assert 'torch' not in sys.modules and 'prefect' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def lock(folder: Path, *lines: str) -> None:
    """Write a requirements.lock as uv does."""
    (folder / "requirements.lock").write_text("".join(f"{line} \\\n    --hash=sha256:00\n" for line in lines))


def make_tree(folder: Path, **files: str) -> Path:
    """A little project: modules of tasks/ by name, __ for a dot, and a lock."""
    for name, text in files.items():
        file = folder / "changepair" / "tasks" / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for parent in (file.parent, folder / "changepair" / "tasks"):
            (parent / "__init__.py").touch()
    lock(
        folder,
        f"torch=={version('torch')}",
        f"scikit-image=={version('scikit-image')}",
        f"scipy=={version('scipy')} ; python_version > '3'",
    )
    return folder


TOP = '''"""Says what."""
import torch


def top(x: int) -> int:
    """Gives."""
    from changepair.tasks.below import below

    return below(x)
'''


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    below = "PAGE = 'page.html'\n\n\ndef below(x):\n    return x + 1\n"
    return make_tree(tmp_path, top=TOP, below=below, other="import skimage.data\n")


def test_code_is_what_a_module_can_run(tree: Path) -> None:
    code = code_of("changepair.tasks.top", root=tree)
    assert (
        list(code.modules) == ["changepair.tasks.below", "changepair.tasks.top"]
        and code.packages == {"torch": version("torch")}
        and not code.files
    )
    assert code_of("changepair.tasks.other", root=tree).packages == {name: version(name) for name in ("scikit-image", "scipy")}


def test_a_package_is_recorded_as_it_is_installed_whatever_the_lock_says(tree: Path) -> None:
    lock(tree, "torch==9.9.9")
    assert code_of("changepair.tasks.top", root=tree).packages == {"torch": version("torch")}
    assert mismatches(["torch"], tree) == [Mismatch("torch", "9.9.9", version("torch"))]


def test_the_lock_of_several_pythons_is_one_version_of_code(tree: Path) -> None:
    lock(tree, f"torch=={version('torch')} ; python_version > '3'", "torch==9.9.9 ; python_version < '3'")
    assert code_of("changepair.tasks.top", root=tree).packages == {"torch": f"{version('torch')} 9.9.9"} and not mismatches(["torch"], tree)
    lock(tree, f"torch=={version('torch')} ; python_version < '3'", "torch==9.9.9 ; python_version > '3'")
    assert code_of("changepair.tasks.top", root=tree).packages == {"torch": version("torch")}
    assert mismatches(["torch"], tree) == [Mismatch("torch", "9.9.9", version("torch"))]
    lock(tree, "torch==9.9.9 ; python_version < '3'")
    assert code_of("changepair.tasks.top", root=tree).packages == {"torch": version("torch")} and not mismatches(["torch"], tree)


@pytest.mark.parametrize(
    ("locked", "installed", "same"),
    [
        ("torch==2.15.0", "2.15.0+cu132", True),
        ("torch==2.15.0+cpu", "2.15.0+cu132", False),
        ("torch[extra,other]==2.15.0", "2.15.0", True),
        ("torch==2.15.0", "2.15.0.post1", False),
        ("torch==2.15.0", "2.15", True),
        ("torch==2.15.0", None, False),
        ("elpv-dataset==1.0.0.post1", None, True),
    ],
)
def test_which_installed_versions_a_lock_allows(
    tree: Path, monkeypatch: pytest.MonkeyPatch, locked: str, installed: str | None, same: bool
) -> None:
    def found(_name: str) -> str:
        if installed is None:
            raise PackageNotFoundError
        return installed

    monkeypatch.setattr(fingerprint, "version", found)
    lock(tree, locked)
    name, wanted = re.split(r"(?:\[.*\])?==", locked)
    assert mismatches([name], tree) == ([] if same else [Mismatch(name, wanted, installed)])
    assert versions_of([name], tree) == {name: wanted if same else installed or "not installed"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Says what."""', '"""Says it otherwise."""'),
        ('    """Gives."""\n', ""),
        ("return below(x)", "return (  # why\n        below(x)\n    )"),
    ],
)
def test_words_and_layout_are_no_code(tree: Path, old: str, new: str) -> None:
    before, file = code_of("changepair.tasks.top", root=tree), tree / "changepair" / "tasks" / "top.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    assert code_of("changepair.tasks.top", root=tree).digest == before.digest


def test_a_change_of_what_runs_a_package_or_a_file_that_is_named_is_one_of_code(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [code_of("changepair.tasks.top", root=tree).digest]
    below = tree / "changepair" / "tasks" / "below.py"
    below.write_text(below.read_text().replace("x + 1", "x + 2"))
    digests.append(code_of("changepair.tasks.top", root=tree).digest)
    monkeypatch.setattr(fingerprint, "version", lambda _name: "9.9.9")
    digests.append(code_of("changepair.tasks.top", root=tree).digest)
    for text in ("one", "two"):
        (tree / "changepair" / "tasks" / "page.html").write_text(text)
        digests.append(code_of("changepair.tasks.top", root=tree).digest)
    assert len(set(digests)) == 5
    (tree / "changepair" / "tasks" / "other.py").write_text("import numpy\n")
    assert code_of("changepair.tasks.top", root=tree).digest == digests[-1]


@pytest.mark.parametrize("kind", [*OF_A_DATASET, *OF_A_PIPELINE])
def test_every_stages_code_is_known(kind: str) -> None:
    """Each package that it computes with has a version in the lock; a stage of a detector has that one's module and no other's."""
    for detector in DETECTORS if kind in ("train", "score") else [None]:
        code = code_of(*roots(kind, detector))
        assert [name for name in code.modules if name.startswith("changepair.flows")] == [f"changepair.flows.{kind}"]
        assert "not installed" not in code.packages.values() and not CARRIERS & set(code.packages)
        assert all(set(beneath) <= set(code.packages) for name, beneath in BENEATH.items() if name in code.packages)
        if detector is not None:
            own = {module for name in (detector, DETECTORS[detector].base) if name is not None for module in DETECTORS[name].modules}
            every = {module for kind in DETECTORS.values() for module in kind.modules}
            assert every & set(code.modules) == own | MADE_OF.get(detector, set())


@pytest.mark.parametrize("kind", [*OF_A_DATASET, *OF_A_PIPELINE])
def test_a_stage_receives_its_settings_and_never_reads_them(kind: str) -> None:
    """What a flow uses is what its stage declares, so DVC knows of it."""
    source = (ROOT / "flows" / f"{kind}.py").read_text()
    assert not re.search(r"read_pipelines|pipeline_named|read_yaml|settings_of", source)


def test_pictures_are_opened_and_text_is_read_in_one_place() -> None:
    """Pillow opens what starts programs, and text of people's own is in any encoding."""
    elsewhere = {"tasks/common/decoding.py": r"Image\.open\(", "tasks/common/texts.py": r"csv\.(DictReader|reader)\("}
    for file in (*ROOT.glob("tasks/**/*.py"), *ROOT.glob("flows/**/*.py")):
        name, text = file.relative_to(ROOT).as_posix(), file.read_text()
        found = {place for place, pattern in elsewhere.items() if re.search(pattern, text)}
        assert found <= {name}, name
