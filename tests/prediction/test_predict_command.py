"""`changepair predict`."""

from __future__ import annotations

import csv
import io
import json
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from conftest import save
from PIL import Image
from predictors import predict, prompt_and_queries, small

from changepair.flows.prediction.options import load
from changepair.tasks.common.tiles import Grid
from changepair.tasks.detectors.residual.settings import PatchResidualSettings
from changepair.tasks.detectors.store import save_model, settings_as_json
from changepair.tasks.prediction.outputs import FULL, csv_lines, line_of
from changepair.tasks.prediction.predictor import Predictor


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own that commands run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_kit_of_the_command_tells_normal_from_anomalous_and_says_so_by_its_exit_code(layout: Path, here: Path) -> None:
    prompt, _queries = prompt_and_queries(layout)
    made = predict(
        "--model",
        "metric-residual",
        "--prompt",
        prompt,
        "--calibrate",
        layout / "bricks",
        "--false-alarms",
        0.25,
        "--write-kit",
        "kit",
    )
    assert made.returncode == 0 and "threshold " in made.stderr and "25 % false alarms, set by" in made.stderr and not made.stdout
    shown = predict("--kit", "kit", layout / "bricks/test", "--out", "out", "--maps", "npy", "--overlays")
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["score", "verdict", "picture"] and len(lines) == 5
    table = (here / "out/scores.csv").read_text().splitlines()
    assert table[0] == "picture,score,threshold,verdict" and len(table) == 5
    assert shown.returncode == (1 if "anomalous" in shown.stdout else 0)
    assert np.load(here / "out/maps/hole/0_png.npy").shape == (96, 96)
    with Image.open(here / "out/overlays/hole/0_png.png") as overlay:
        assert overlay.size == (96, 96) and overlay.mode == "RGB"
    good = predict("--kit", "kit", prompt)
    assert good.returncode == 0 and "normal" in good.stdout
    bad = save(np.random.default_rng(0).integers(0, 255, (96, 96), np.uint8), here / "noise.png")
    assert predict("--kit", "kit", bad).returncode == 1


def test_no_row_contradicts_itself_whatever_the_batch_size(here: Path) -> None:
    """Recomputed from the printed text. The threshold is set at one batch size; its pictures below it stay there at every other."""
    photo = skimage.data.gravel()
    for number in range(12):
        save(photo[32 * number :][:100, 22 * number :][:, :130], here / "normal" / f"{number:02d}.png")
    save(photo[-100:, -130:], here / "prompt.png")
    own, files, tables = small().prompt("prompt.png"), sorted(Path("normal").glob("*.png")), []
    own.calibrate(files, false_alarms=0.2, batch_size=8)
    own.save("kit")
    own = Predictor.load("kit")
    for size in (1, 2, 3, 8, 16):
        text = io.StringIO()
        write = csv_lines(text)
        for one in own.each(files, batch_size=size):
            write(line_of(str(files[one.number]), one.score, own.threshold))
        rows = list(csv.DictReader(io.StringIO(text.getvalue())))
        assert all((float(row["score"]) > float(row["threshold"])) == (row["verdict"] == "anomalous") for row in rows)
        assert all(re.fullmatch(r"0\.\d{6}", row[name]) for row in rows for name in ("score", "threshold"))
        assert sum(row["verdict"] == "anomalous" for row in rows) == 1 and len(rows) == 12  # the 11th of 12 set it
        tables.append(rows)
    for rows in tables:
        assert [row["verdict"] for row in rows] == [row["verdict"] for row in tables[0]]
        for row, first in zip(rows, tables[0], strict=True):
            assert abs(float(row["score"]) - float(first["score"])) < 1.5e-6
    printed = [predict("--kit", "kit", "normal", "--batch-size", 16, "--format", form).stdout for form in ("csv", "json")]
    assert printed[0] == text.getvalue()
    numbers = [{**row, "score": float(row["score"]), "threshold": float(row["threshold"])} for row in tables[-1]]
    assert numbers == list(map(json.loads, printed[1].splitlines()))


def test_a_truncated_picture_is_told_and_the_others_are_scored(layout: Path, here: Path) -> None:
    prompt, queries = prompt_and_queries(layout)
    queries[1].write_bytes(queries[1].read_bytes()[:2000])
    result = predict("--prompt", prompt, layout / "bricks/test", "--format", "csv", "--out", "out", "--maps", "png")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "truncated or not an image" in result.stderr
    rows = result.stdout.splitlines()
    assert rows[0] == "picture,score,threshold,verdict" and [row.split(",")[0] for row in rows[1:]] == [str(queries[i]) for i in (0, 2, 3)]
    map_ = np.asarray(Image.open(here / "out/maps/hole/0_png.png"))
    assert map_.dtype == np.uint16 and 0 < map_.max() <= FULL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "no.png", "part.png"], "part.png: no such file"),
        (["part"], "part: a folder without a picture"),
        (["ok.png"], "no prompt: robust-residual needs at least one normal picture"),
        ([], "no pictures given"),
        (["--kit", "part", "ok.png"], "part: is not a kit"),
        (["--kit", "part", "--prompt", "ok.png", "ok.png"], "--prompt: cannot be combined with --kit"),
        (["--prompt", "ok.png", "ok.png", "--maps", "png"], "--maps: needs --out"),
        (["--prompt", "ok.png", "ok.png", "--batch-size", "0"], "--batch-size: between 1 and 2147483647, not 0"),
        (["--prompt", "ok.png", "--calibrate", "ok.png"], "--calibrate: nothing would use the threshold"),
        (["--prompt", "ok.png", "--tiles", "0x3", "ok.png"], "rows x columns"),
        (
            ["--prompt", "ok.png", "--calibrate", "ok.png", "--write-kit", "kit"],
            "1 of the 1 normal pictures are prompts, which cannot set a threshold: 0 are left, and 1 % false alarms needs 99; add other",
        ),
        (["--model", "nowhere", "--prompt", "part", "--calibrate", "ok.png", "ok.png"], "1 normal picture cannot set a threshold for 1 %"),
        (
            ["--model", "nowhere", "--calibrate", "ok.png", "--false-alarms", "0.9", "ok.png"],
            "false alarms: must be between 0.0001 and 0.5",
        ),
        (["--prompt", "ok.png", "ok.png", "--model", "nowhere"], "neither a folder nor a detector"),
        (["--prompt", "ok.png", "ok.png", "--out", "ok.png/x"], "ok.png"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(here: Path, arguments: list[str], message: str) -> None:
    (here / "part").mkdir()
    save(skimage.data.brick()[:64, :64], here / "ok.png")
    if "nowhere" in arguments:
        save(skimage.data.brick()[64:128, :64], here / "part" / "other.png")
    result = predict(*arguments)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_tiles_are_cut_as_the_setting_says_unless_the_command_says_otherwise(layout: Path, here: Path) -> None:
    """The option holds for prompts that come later, too: from clients of the service, or visitors of the page."""
    prompt, queries = prompt_and_queries(layout)
    settings = PatchResidualSettings(resolution=64, tiles=(2, 1))
    own = small(settings)
    save_model(here / "model", own.detector, {"detector": "patch-residual", "settings": settings_as_json(settings)})
    for options, grid in (((), Grid(2, 1)), (("--tiles", "1x1"), Grid(1, 1)), (("--tiles", "1x3"), Grid(1, 3))):
        printed = predict("--model", "model", "--prompt", prompt, *options, "--format", "csv", *queries).stdout
        scores = [float(row["score"]) for row in csv.DictReader(io.StringIO(printed))]
        assert scores == pytest.approx(own.prompt(prompt, grid=grid)(queries).scores, abs=1e-6)
        later = load(Namespace(kit=None, prompt=[], model="model", tiles=tuple(grid) if options else None, category=None, intensity=None))
        assert Predictor(later.model).prompt(prompt).prompted.grid == grid
    own.prompt(prompt).save(here / "kit")
    refused = predict("--model", "kit", "--tiles", "2x2", *queries)
    assert refused.returncode == 2 and "--tiles: kit is a kit and includes it" in refused.stderr


def test_a_broken_prompt_is_reported_and_the_others_are_used(layout: Path, here: Path) -> None:
    prompt, queries = prompt_and_queries(layout)
    (here / "prompts").mkdir()
    (here / "prompts" / "0.png").write_bytes(prompt.read_bytes())
    (here / "prompts" / "1.png").write_bytes(prompt.read_bytes()[:2000])
    result = predict("--prompt", "prompts", "--format", "csv", queries[0])
    alone = predict("--prompt", prompt, "--format", "csv", queries[0])
    assert result.returncode == 2 and "prompts/1.png: truncated or not an image" in result.stderr and result.stdout == alone.stdout
    (here / "prompts" / "0.png").unlink()
    none = predict("--prompt", "prompts", queries[0])
    assert none.returncode == 2 and "no prompt: robust-residual needs at least one" in none.stderr


def test_a_picture_of_fewer_bits_than_the_prompts_is_reported(here: Path) -> None:
    """12 bits in a file of 16 are read as dark, because the prompts of 16 bits say what is white."""
    grey = skimage.data.brick()[:64, :64] / 255
    for name, white in (("prompt", 65535), ("same", 65535), ("fewer", 4095)):
        Image.fromarray(np.rint(grey * white).astype(np.uint16)).save(f"{name}.png")
    answer = predict("--model", "patch-residual", "--prompt", "prompt.png", "same.png", "fewer.png", "--format", "csv")
    assert len(answer.stdout.splitlines()) == 3
    [said] = [line for line in answer.stderr.splitlines() if "of the intensity range of the prompts" in line]
    assert said.startswith("changepair: fewer.png: its highest value is only ") and said.endswith("fewer bits than the prompts, convert it")
