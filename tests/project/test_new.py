"""`changepair new`: a folder becomes a project, which needs the installed package and no checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import skimage.data
from conftest import ROOT, run
from core import build_wheel, environment
from PIL import Image
from processes import within
from servers import AUTHENTICATION, ask, prefect_server

from changepair.flows.new import FILES, TEMPLATE

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_a_new_project_is_a_repository_with_a_valid_pipeline(tmp_path: Path) -> None:
    said = run(tmp_path, "changepair", "new", "my-line", PYTHONPATH=str(ROOT))
    project = tmp_path / "my-line"
    assert said.returncode == 0 and "next: cd my-line && changepair retrain" in said.stdout, said.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["my-line"]
    assert {"pipelines.yaml", ".gitignore", ".dvcignore", "README.md", ".dvc/config", "dvc.yaml"} <= set(git(project, "ls-files").split())
    assert "my-line" in (project / "README.md").read_text().splitlines()[0]
    planned = run(project, "changepair", "retrain", "--dry-run", PYTHONPATH=str(ROOT))
    assert planned.returncode == 0 and "10 of 10 stages would run" in planned.stdout, planned.stderr


def test_it_starts_from_the_pipelines_of_another_folder(tmp_path: Path) -> None:
    example = tmp_path / "example"
    example.mkdir()
    text = (TEMPLATE / "pipelines.yaml").read_text().replace("first", "second") + "# {name} of somebody's own\n"
    (example / "pipelines.yaml").write_text(text)
    said = run(tmp_path, "changepair", "new", "mine", "--from", "example", PYTHONPATH=str(ROOT))
    assert said.returncode == 0 and (tmp_path / "mine" / "pipelines.yaml").read_text() == text, said.stderr
    assert "score_second_patch-residual" in (tmp_path / "mine" / "dvc.yaml").read_text()


def test_it_stands_next_to_a_repository_that_it_is_started_in(tmp_path: Path) -> None:
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    said = run(tmp_path / "clone", "changepair", "new", "../my-line", PYTHONPATH=str(ROOT))
    assert said.returncode == 0 and (tmp_path / "my-line" / "pipelines.yaml").is_file(), said.stderr


def test_the_next_command_quotes_the_name_of_the_folder(tmp_path: Path) -> None:
    said = run(tmp_path, "changepair", "new", "meine Teile", PYTHONPATH=str(ROOT))
    assert said.returncode == 0 and "next: cd 'meine Teile' && changepair retrain" in said.stdout, said.stderr


@pytest.mark.parametrize(
    ("before", "arguments", "message"),
    [
        ("full/file", ["full"], "full: is not an empty folder; choose a new folder"),
        ("file", ["file"], "file: is not an empty folder; choose a new folder"),
        ("file", ["file/new"], "/file is a file, not a folder; choose another folder"),
        ("full/file", ["new", "--from", "full"], "--from full: contains no pipelines.yaml; choose a folder with one"),
        ("wrong/pipelines.yaml", ["new", "--from", "wrong"], "pipelines.yaml: invalid YAML"),
        (".git/HEAD", ["new"], "is inside the Git repository"),
    ],
)
def test_what_cannot_become_a_project_is_refused_and_nothing_is_written(
    before: str, arguments: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / before).parent.mkdir(exist_ok=True)
    (tmp_path / before).write_text("{")
    there = sorted(tmp_path.rglob("*"))
    said = run(tmp_path, "changepair", "new", *arguments, PYTHONPATH=str(ROOT))
    assert said.returncode == 2 and message in said.stderr and len(said.stderr.splitlines()) == 1, said.stderr
    assert sorted(tmp_path.rglob("*")) == there


def test_retrain_without_an_enabled_pipeline_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "pipelines.yaml").write_text("enabled: []\ndatasets: {}\npipelines: {}\n")
    said = run(tmp_path, "changepair", "retrain", PYTHONPATH=str(ROOT))
    assert said.returncode == 2 and "enabled: the list is empty; add a pipeline to it, or run `changepair init" in said.stderr


def test_this_repository_has_what_a_new_project_has() -> None:
    """It is such a project."""
    ignored = set((ROOT / ".gitignore").read_text().splitlines())
    assert set((TEMPLATE / "gitignore").read_text().splitlines()) <= ignored
    for name, place in FILES.items():
        if place.startswith(".dvc/") and (TEMPLATE / name).is_file():
            assert (TEMPLATE / name).read_text() == (ROOT / place).read_text()
    assert (ROOT / ".dvc/plots").resolve() == (TEMPLATE / "plots").resolve()


@pytest.mark.slow
def test_the_wheel_alone_retrains_reproduces_schedules_and_predicts(tmp_path: Path) -> None:
    python = environment(tmp_path / "environment", build_wheel(tmp_path / "wheel"), ["pipelines"])
    (tmp_path / "home").mkdir()
    variables = {"PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    variables |= {f"GIT_{who}_{what}": "changepair@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

    def call(folder: Path, *command: str, **more: str) -> str:
        done = subprocess.run(command, cwd=folder, env=variables | more, capture_output=True, text=True, timeout=900)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.stdout + done.stderr

    project, line = tmp_path / "line", ("--prompt", "normal.png")
    call(tmp_path, "changepair", "new", "line")
    assert "10 of 10 stages ran" in call(project, "changepair", "retrain")
    assert "Running stage" not in call(project, "dvc", "repro").replace("Running stage 'code'", "")
    texture = skimage.data.gravel()
    Image.fromarray(texture[:128, :128]).save(project / "normal.png")
    Image.fromarray(texture[128:256, :128]).save(project / "part.png")
    assert "part.png" in call(project, "changepair", "predict", "--model", "first", *line, "part.png")

    call(project, "git", "add", "--all")
    call(project, "git", "commit", "--quiet", "--message", "first run")
    call(tmp_path, "git", "clone", "--quiet", "--bare", "line", "origin.git")
    call(project, "git", "remote", "add", "origin", str(tmp_path / "origin.git"))
    call(project, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    call(project, "git", "commit", "--quiet", "--all", "--message", "add a store")
    call(project, "git", "push", "--quiet", "origin", "main")
    call(project, "dvc", "push", "--quiet")
    with prefect_server(tmp_path / "prefect") as url:
        api = {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": AUTHENTICATION}
        with (project / "serve.log").open("w") as log:
            serving = subprocess.Popen(["changepair", "serve"], cwd=project, env=variables | api, stdout=log, stderr=log)
        try:
            within(120, lambda: ask(url, "deployments"))
            call(project, "prefect", "deployment", "run", "scheduled/first", **api)
            ended = within(600, lambda: [one for one in ask(url, "flow_runs") if one["deployment_id"] and one["state_type"] in ENDED])
        finally:
            serving.terminate()
            serving.wait(60)
    assert [one["state_type"] for one in ended] == ["COMPLETED"], ended[0]["state"]["message"] + (project / "serve.log").read_text()
