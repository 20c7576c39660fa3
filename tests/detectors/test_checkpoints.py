"""The authors' checkpoints: files of their layouts, filled at random, find every tensor its place and score as the papers' formulas."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run
from plain_inctrl import inctrl
from plain_metauas import metauas
from torch import Tensor

from changepair.flows.settings.pipelines import read_pipelines
from changepair.tasks.common.errors import BadInput
from changepair.tasks.detectors.detector import Detector
from changepair.tasks.detectors.inctrl.settings import PUBLISHED as PUBLISHED_INCTRL
from changepair.tasks.detectors.metauas.settings import PUBLISHED as PUBLISHED_METAUAS
from changepair.tasks.detectors.pretrained import Imported, import_checkpoint, use_model
from changepair.tasks.detectors.registry import DETECTORS
from changepair.tasks.detectors.settings import TrainedSettings
from changepair.tasks.detectors.store import create_detector, load_model, settings_as_json, trained_otherwise
from changepair.tasks.encoders.settings import PACKAGED
from changepair.tasks.encoders.texts import sentences
from changepair.tasks.encoders.weights import read_weights

LAYOUTS = ROOT / "tests" / "support" / "layouts"


def layout_of(name: str) -> dict[str, list[int]]:
    """The shapes of the published tensors, by name."""
    shapes: dict[str, list[int]] = json.loads((LAYOUTS / f"{name}_checkpoint_layout.json").read_text(encoding="utf-8"))
    return shapes


def filled(name: str) -> dict[str, Tensor]:
    """Tensors of the published layout, at random, of a size that keeps activations near 1."""
    torch.manual_seed(0)
    tensors = {}
    for key, shape in layout_of(name).items():
        if key.endswith("num_batches_tracked"):
            tensors[key] = torch.tensor(7)
        elif key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
            tensors[key] = torch.rand(shape) * 0.5 + 0.75
        elif len(shape) == 1:
            tensors[key] = torch.randn(shape) * 0.1
        else:
            tensors[key] = torch.randn(shape) / (torch.tensor(shape[1:]).prod() ** 0.5 if len(shape) > 1 else 1)
    return tensors


@pytest.fixture(scope="module")
def published_metauas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("metauas") / "metauas-256.ckpt"
    torch.save(filled("metauas"), file)
    return file


def loaded(settings: TrainedSettings, folder: Path) -> Detector:
    model = create_detector(settings)
    load_model(folder, model)
    return model.eval()


@torch.inference_mode()
def test_the_published_metauas_loads_and_scores_as_the_paper_says(published_metauas: Path, tmp_path: Path) -> None:
    assert import_checkpoint("metauas", published_metauas, tmp_path / "model") == Imported(820, ())
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["detector"] == "metauas" and config["imported_from"] == "metauas-256.ckpt"
    model = loaded(PUBLISHED_METAUAS, tmp_path / "model")
    for height, width in ((256, 256), (128, 128), (256, 320)):
        queries, prompt = torch.rand(2, 3, height, width), torch.rand(1, 3, height, width)
        scores, maps = model.score(queries, prompt)
        expected = metauas(read_weights(published_metauas), queries, prompt.expand(2, -1, -1, -1))
        assert expected.std() > 1e-3  # not a constant
        assert torch.allclose(maps, expected, atol=1e-5) and torch.allclose(scores, expected.flatten(1).amax(dim=1), atol=1e-5)


@torch.inference_mode()
def test_the_published_inctrl_loads_and_scores_as_the_paper_says(tmp_path: Path) -> None:
    tensors, file = filled("inctrl"), tmp_path / "2.pyth"
    torch.save({"model_state": tensors}, file)
    assert import_checkpoint("inctrl", file, tmp_path / "model") == Imported(345, ())
    file.unlink()
    model = loaded(PUBLISHED_INCTRL, tmp_path / "model")
    queries, prompts = torch.rand(2, 3, 240, 240), torch.rand(2, 3, 240, 240)
    scores, maps = model.score(queries, prompts, "horse")
    for query, score, map_ in zip(queries, scores, maps, strict=True):
        expected, residual = inctrl(tensors, query, prompts, sentences("horse", natural=True))
        assert float(score) == pytest.approx(expected, abs=1e-5)
        patches = torch.nn.functional.interpolate(residual.view(1, 1, 15, 15), size=(240, 240), mode="bilinear")[0, 0]
        assert torch.allclose(map_, patches, atol=1e-5)
    assert scores[0] != scores[1]


def test_what_the_authors_loader_passes_over_is_named_and_left_out(tmp_path: Path) -> None:
    types = {"num_batches_tracked": torch.int64}
    tensors = {  # a number each on disk
        key: torch.zeros((), dtype=types.get(key.rpartition(".")[2])).expand(shape) for key, shape in layout_of("inctrl").items()
    }
    tensors["module.queue.pictures"] = torch.zeros(3)
    torch.save({"model_state": tensors}, tmp_path / "2.pyth")
    assert import_checkpoint("inctrl", tmp_path / "2.pyth", tmp_path / "model") == Imported(345, ("module.queue.pictures",))
    del tensors["adapter.fc.0.weight"]
    torch.save({"model_state": tensors}, tmp_path / "2.pyth")
    with pytest.raises(BadInput, match="is not a checkpoint of the published inctrl: 1 tensors: missing adapter"):
        import_checkpoint("inctrl", tmp_path / "2.pyth", tmp_path / "other")


def test_a_missing_and_a_surplus_tensor_and_another_shape_are_listed(published_metauas: Path, tmp_path: Path) -> None:
    tensors = read_weights(published_metauas)
    del tensors["alignment.0.alignment_layer.dimensionality_reduction.bias"], tensors["encoder._bn0.weight"]
    tensors["decoder.blocks.7.conv1.0.weight"] = torch.zeros(1)
    tensors["mask_head.bias"] = torch.zeros(2)
    torch.save(tensors, tmp_path / "other.ckpt")
    with pytest.raises(BadInput) as caught:
        import_checkpoint("metauas", tmp_path / "other.ckpt", tmp_path / "model")
    message = str(caught.value)
    for part in (
        "other.ckpt: is not a checkpoint of the published metauas: 4 tensors: ",
        "missing alignment.0.alignment_layer.dimensionality_reduction.bias",
        "missing encoder._bn0.weight",
        "surplus decoder.blocks.7.conv1.0.weight",
        "mask_head.bias of shape (2,) instead of (1,)",
    ):
        assert part in message
    assert not (tmp_path / "model").exists() and "\n" not in message


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("run",))


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"encoder": Payload()}, tmp_path / "evil.ckpt")
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps({"a": Payload()}))
    torch.save({"epoch": 3}, tmp_path / "odd.ckpt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    for name, message in (
        ("evil.ckpt", "not readable"),
        ("old.ckpt", "not readable"),
        ("odd.ckpt", "does not hold tensors"),
        ("cut.safetensors", "not readable"),
    ):
        with pytest.raises(BadInput, match=f"{name}: .*{message}"):
            import_checkpoint("metauas", tmp_path / name, tmp_path / "model")
    assert capsys.readouterr().out == ""


def test_the_command_imports_or_says_in_one_line_why_not(published_metauas: Path, tmp_path: Path) -> None:
    result = run(ROOT, "changepair", "import", "metauas", str(published_metauas), "--out", str(tmp_path / "model"))
    assert (
        result.returncode == 0
        and result.stdout.startswith("imported 820 tensors from ")
        and (tmp_path / "model" / "model.safetensors").is_file()
    )
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.ckpt")
    wrong = run(ROOT, "changepair", "import", "metauas", str(tmp_path / "other.ckpt"), "--out", str(tmp_path / "other"))
    assert wrong.returncode == 2 and wrong.stdout == "" and len(wrong.stderr.splitlines()) == 1
    assert "is not a checkpoint of the published metauas: 821 tensors: missing encoder._conv_stem.weight" in wrong.stderr


def test_an_imported_model_is_used_as_it_is(published_metauas: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    import_checkpoint("metauas", published_metauas, tmp_path / "model")
    settings = replace(PUBLISHED_METAUAS, model=str(tmp_path / "model"))
    use_model("metauas", settings, tmp_path / "used")
    assert (tmp_path / "used" / "model.safetensors").read_bytes() == (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(BadInput, match="no such model folder; create it with `changepair import metauas"):
        use_model("metauas", replace(settings, model=str(tmp_path / "none")), tmp_path / "used")
    with pytest.raises(
        BadInput, match=r"detectors\.metauas\.model: .*/model: it was trained with other settings; set fusion: \"concatenate\""
    ):
        use_model("metauas", replace(settings, fusion="add"), tmp_path / "used")
    (tmp_path / "model" / "config.json").write_text("{}")  # nobody can tell what it is
    with pytest.raises(BadInput, match=r"/model/config\.json: not a config of this version \(no 'detector'\); train the model again"):
        use_model("metauas", settings, tmp_path / "used")


def test_the_example_takes_the_published_model() -> None:
    """Those that name one have the settings that it was published with."""
    pipelines = read_pipelines(ROOT / "examples/metauas/pipelines.yaml").pipelines
    named = [(name, settings) for one in pipelines.values() for name, settings in one.detectors.items() if getattr(settings, "model", None)]
    imported = [(name, settings) for name, settings in named if settings.model not in (None, PACKAGED)]
    assert imported
    for name, settings in imported:
        published = DETECTORS[name].published
        assert published is not None
        assert trained_otherwise(name, settings, settings_as_json(published.settings), with_encoder=False) == ""
