"""deploy/ has no default password, and is in step with the project."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT

FILES = ("compose.yaml", "api.yaml")
TEXT = "".join((ROOT / "deploy" / name).read_text() for name in FILES)
SERVICES: dict[str, Any] = {
    name: service for file in FILES for name, service in yaml.safe_load((ROOT / "deploy" / file).read_text())["services"].items()
}
VARIABLE = re.compile(r"\$\{(\w+)(:\?[^}]*|:-[^}]*)?\}")
MAY_BE_EMPTY = {"GIT_CREDENTIALS", "POOL"}


def settings() -> list[tuple[str, str | None]]:
    """Every variable of the compose files that the user sets, with what it says where it is not set."""
    return [(match[1], match[2]) for match in VARIABLE.finditer(TEXT)]


def test_no_password_has_a_default_and_the_example_names_all_that_must_be_set() -> None:
    required = {name for name, rest in settings() if rest and rest.startswith(":?")}
    assert {name for name, rest in settings() if rest and rest.startswith(":-")} == MAY_BE_EMPTY
    example = dict(line.split("=", 1) for line in (ROOT / "deploy/.env.example").read_text().splitlines() if "=" in line and line[0] != "#")
    assert required <= set(example) and set(example.values()) == {""}
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY|AUTH|TOKEN", key) and not key.startswith("GIT_CONFIG_"):
                assert value.startswith("${"), key
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/deploy/.env" in ignored


def test_the_image_is_of_this_version_and_installs_from_the_lock_alone() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert {SERVICES[name]["image"] for name in ("server", "worker", "api")} == {f"changepair:{version[1]}"}
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    assert "--require-hashes -r requirements.lock" in dockerfile and "USER changepair" in dockerfile
    copied = re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE)
    assert all((ROOT / name).exists() for names in copied for name in names.split())
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == {name for names in copied for name in names.split()}  # no data, no deploy/.env
    assert Path(ROOT / SERVICES["server"]["build"]["dockerfile"]).is_file()


def test_the_service_in_a_container_is_asked_for_its_token() -> None:
    from changepair.flows.cli import parser

    service = SERVICES["api"]
    assert service["volumes"][0].endswith(":/kits:ro")
    assert service["environment"]["CHANGEPAIR_API_TOKEN"].startswith("${API_TOKEN:?")
    arguments = parser().parse_args(service["command"][1:])
    assert arguments.host == "0.0.0.0" and str(arguments.kits) == "/kits"


def test_git_takes_its_credentials_from_the_workers_secret(tmp_path: Path) -> None:
    variables = {key: value for key, value in SERVICES["worker"]["environment"].items() if key.startswith("GIT_CONFIG_")}
    (tmp_path / "git").write_text("username=ci\npassword=token\n")
    # Compose reads $$ as $.
    variables = {key: value.replace("$$", "$").replace("/run/secrets", str(tmp_path)) for key, value in variables.items()}
    environment = {**os.environ, **variables, "GIT_TERMINAL_PROMPT": "0"}
    for action, given in (("fill", "username=ci\npassword=token\n"), ("approve", ""), ("reject", "")):
        asked = "protocol=https\nhost=git.example.com\n" + ("" if action == "fill" else "username=ci\npassword=token\n")
        result = subprocess.run(["git", "credential", action], input=asked, capture_output=True, text=True, env=environment, check=True)
        assert result.stdout.endswith(given) and not result.stderr
    assert (tmp_path / "git").read_text() == "username=ci\npassword=token\n"


def test_the_folder_of_every_volume_of_ours_belongs_to_the_images_user() -> None:
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    [prepared] = re.findall(r"install -d -o changepair -g changepair (.+)", dockerfile)
    for name in ("server", "worker", "api"):
        for source, _, rest in (volume.partition(":") for volume in SERVICES[name].get("volumes", [])):
            if "/" not in source and "$" not in source:
                assert rest in prepared.split()


def test_the_image_has_neither_test_tools_nor_sample_pictures() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {re.split(r"[\[<>=]", item)[0] for extra in ("check", "docs", "samples", "test") for item in extras[extra]}
    [removed] = re.findall(r"pip uninstall --yes ((?:.+\\\n)*.+)", (ROOT / "deploy/Dockerfile").read_text())
    assert set(removed.replace("\\", " ").split()) == names - {"pyyaml"}  # which others need
