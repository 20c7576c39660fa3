"""`changepair sweep` refuses invalid settings with one line, before it scores anything."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, TINY, write_pipelines

from changepair.flows import dry_run, sweep
from changepair.flows.cli import parser
from changepair.flows.dry_run import Forecast
from changepair.flows.settings.pipelines import pipeline_named
from changepair.flows.sweep import combinations, read_values, refuse_outdated
from changepair.tasks.common.errors import BadInput

FILE = ROOT / "pipelines.yaml"


def swept(detector: str, *lines: str, pipeline: str = "quickstart", file: Path = FILE) -> list[dict[str, Any]]:
    return combinations(pipeline, detector, pipeline_named(pipeline, file).detectors[detector], read_values(lines), file)


def test_every_combination_has_its_values_and_all_other_settings_of_the_file() -> None:
    held = pipeline_named("quickstart", FILE).detectors
    found = swept("patch-residual", "encoder.scales=[1],[1, 0.5]", "self_residual=0,0.5", "contrast=null,0.1")
    asked = [(one["patch-residual"].encoder.scales, one["patch-residual"].self_residual, one["patch-residual"].contrast) for one in found]
    assert asked == [(scales, own, floor) for scales in ((1.0,), (1.0, 0.5)) for own in (0.0, 0.5) for floor in (None, 0.1)]
    assert all(one["patch-residual"].background == held["patch-residual"].background == 0.5 for one in found)
    assert all({**one, "patch-residual": None} == {**held, "patch-residual": None} for one in found)


def test_a_pipeline_without_detectors_has_its_defaults(tmp_path: Path) -> None:
    content = {"enabled": [], "datasets": {"packaged": ["digits"]}, "pipelines": {"mine": {"targets": ["digits"]}}}
    file = write_pipelines(tmp_path, content)
    found = swept("metric-residual", "top_share=0,0.1", pipeline="mine", file=file)
    assert [one["metric-residual"].top_share for one in found] == [0.0, 0.1]
    assert all(one["metric-residual"].model == "packaged" and set(one) == {"patch-residual", "metric-residual"} for one in found)


@pytest.mark.parametrize(
    ("detector", "lines", "message"),
    [
        ("patch-residual", ["top_share"], "'top_share': expected KEY=VALUES, such as top_share=0,0.01"),
        ("patch-residual", ["top_share="], "expected KEY=VALUES"),
        ("patch-residual", ["top_share=0,[1"], "invalid YAML in line 1"),
        ("patch-residual", ["top_share=0,0.0"], "top_share or one of its values is given twice"),
        ("patch-residual", ["top_share=0", "top_share=1"], "top_share or one of its values is given twice"),
        ("patch-residual", ["top_shar=0,0.1"], "detectors.patch-residual.top_shar: unknown key; did you mean 'top_share'?"),
        ("patch-residual", ["top_share=0,2"], "detectors.patch-residual.top_share: expected between 0 and 1, not 2"),
        ("patch-residual", ["encoder.scales=1,0.5"], "detectors.patch-residual.encoder.scales: expected a list"),
        ("patch-residual", ["top_share=0,.inf"], "expected a number, not inf"),
        ("patch-residual", ["top_share.x=1"], "not a section, so it has no keys to set"),
        ("metauas", ["residual=0,20"], "residual: expected above 0"),
        ("metauas", ["fusion=add,difference"], "sweep: metauas with another fusion needs another training; sweep only resolution, "),
        ("metric-residual", ["model=packaged,null"], "sweep: metric-residual with another model needs another training"),
        ("inctrl", ["encoder.name=tf_efficientnet_lite2"], "sweep: inctrl with another encoder needs another training"),
        ("patch-residual", [f"top_share={','.join(f'0.{n + 100}' for n in range(300))}"], "sweep: more than 256 combinations"),
    ],
)
def test_invalid_combinations_are_refused(detector: str, lines: list[str], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        swept(detector, *lines)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("detector", "lines"),
    [
        ("metric-residual", ["encoder.scales=[1],[1,0.4]", "resolution=256,320", "tiles=auto,[1, 1]", "smoothing=0,2"]),
        ("metauas", ["top_share=0,0.01", "residual=10,20"]),
    ],
)
def test_settings_that_no_weight_depends_on_can_be_swept(detector: str, lines: list[str]) -> None:
    assert len(swept(detector, *lines)) == 2 ** len(lines)


def test_stages_that_have_to_run_first_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = pipeline_named("quickstart", FILE)
    state: dict[str, Forecast] = {}
    monkeypatch.setattr(dry_run, "forecast", lambda name: state)
    always = {"ingest_elpv": Forecast((dry_run.ALWAYS,)), "objects_elpv": Forecast(after=("ingest_elpv",))}
    changed = {"ingest_digits": Forecast(("its code changed",)), "objects_digits": Forecast(after=("ingest_digits",))}
    current = {**always, **changed, "sample_quickstart": Forecast(after=("objects_elpv",)), "train_quickstart_metauas": Forecast()}
    state.update(current)
    refuse_outdated("quickstart", "metauas", pipeline)
    for stage, reason, said in (
        ("sample_quickstart", Forecast(("its output data/episodes/quickstart.parquet is missing",)), "is missing"),
        ("sample_quickstart", Forecast(after=("objects_elpv", "objects_digits")), "objects_digits changes"),
        ("train_quickstart_metauas", Forecast(("its code changed",)), "its code changed"),
    ):
        state.update({**current, stage: reason})
        with pytest.raises(BadInput) as caught:
            refuse_outdated("quickstart", "metauas", pipeline)
        assert str(caught.value).startswith(f"sweep: the stage {stage} has to run first (") and said in str(caught.value)
        assert str(caught.value).endswith(f"run `dvc repro {stage}`")
    refuse_outdated("quickstart", "patch-residual", pipeline)  # needs no training


def test_a_sweep_leaves_a_table_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pictures are ingested and sampled as by the stages."""
    from conftest import make_layout

    from changepair.tasks.ingestion.ingest import IngestionFolders, ingest_folder
    from changepair.tasks.sampling.episodes import EpisodeFiles
    from changepair.tasks.sampling.sample import sample
    from changepair.tasks.sampling.settings import SamplingSettings, Use

    monkeypatch.chdir(tmp_path)
    make_layout(tmp_path / "parts")
    write_pipelines(tmp_path, TINY)
    places = IngestionFolders(Path("data/pictures"), Path("data/manifests"), Path("data/checkpoints"))
    ingest_folder("parts", Path("parts"), licence="own", places=places)
    sample(
        SamplingSettings(shots=(1, 2), seeds=(0, 1)),
        Use((), ("parts",)),
        manifests=places.manifests,
        files=EpisodeFiles.of(Path("data/episodes"), "small"),
    )
    monkeypatch.setattr(dry_run, "forecast", lambda name: {"sample_small": Forecast()})
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    line = ["sweep", "small", "patch-residual", "encoder.scales=[1],[1, 0.5]", "top_share=0,0.05", "--target", "parts"]
    arguments = parser().parse_args(line)
    arguments.run(arguments)
    output = capsys.readouterr().out
    assert "do not report its metrics on these targets" in output.replace("\n", " ") and "data/sweeps/small-patch-residual.csv" in output
    assert output.count("±") == 5 and "best" in output
    new = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file() and file not in before}
    assert new == {"data/sweeps/small-patch-residual.csv", ".dvc/tmp/changepair/sweep-small.lock"}
    text = (tmp_path / "data/sweeps/small-patch-residual.csv").read_text()
    assert text.startswith("encoder.scales,top_share,target,category,protocol,shots,metric,mean,std,")

    def stop(*_given: Any, **_named: Any) -> None:
        (tmp_path / "data/checkpoints/small/sweep/half").write_text("")
        raise KeyboardInterrupt

    def end(*_given: Any, **_named: Any) -> None:
        (tmp_path / "data/checkpoints/small/sweep/half").write_text("")
        os.kill(os.getpid(), signal.SIGTERM)

    for ended, error in ((stop, KeyboardInterrupt), (end, SystemExit)):
        monkeypatch.setattr("changepair.tasks.scoring.sweep.sweep", ended)
        with pytest.raises(error):
            arguments.run(arguments)
        assert not (tmp_path / "data/checkpoints/small/sweep").exists()
    assert (tmp_path / "data/sweeps/small-patch-residual.csv").read_text() == text
    with sweep.scratch("small"), pytest.raises(BadInput, match="sweep small: another run is active"), sweep.scratch("small"):
        pass
    with pytest.raises(BadInput, match=r"--out .*: is a folder; name a file"):
        sweep.run(SimpleNamespace(**{**vars(arguments), "out": tmp_path}))  # type: ignore[arg-type]
