"""Completion scripts: every shell gets one, with the subcommands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from changepair.flows.cli import main
from changepair.flows.completion import INSTALL


@pytest.mark.parametrize("shell", INSTALL)
def test_a_script_completes_commands(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["changepair", "completion", shell])
    main()
    script = capsys.readouterr().out
    assert "predict" in script and "pairs" in script
    if shell == "bash":
        (tmp_path / "script").write_text(script, encoding="utf-8")
        asked = f"source {tmp_path}/script; COMP_WORDS=(changepair pairs ex); COMP_CWORD=2; _shtab_changepair; echo ${{COMPREPLY[@]}}"
        assert subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True).stdout.split() == ["export"]
