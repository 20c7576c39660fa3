"""Load the detectors that come with this package, trained on the packaged photographs. docs/pages/explanation/quality.md describes them.

Next to this module are <name>.safetensors, without the frozen encoder, which has a package of its own, and <name>.json, its settings.
`python -m changepair.tasks.packaged.detectors <name> <model folder>` writes both from a folder of the train stage.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import sha256, write_text, written_beside
from changepair.tasks.detectors.registry import DETECTORS, kind_of
from changepair.tasks.detectors.store import CONFIG_NAME, MODEL_NAME, as_line, misfits, settings_from_json, trained_otherwise
from changepair.tasks.encoders.weights import read_weights

MODELS = {  # names written out: by them tasks/common/fingerprint.py knows that a result depends on the files
    "metauas": ("metauas.safetensors", "metauas.json"),
    "metric-residual": ("metric-residual.safetensors", "metric-residual.json"),
    "prompt-query": ("prompt-query.safetensors", "prompt-query.json"),
}
ENCODER = "encoder."  # what the names of the frozen encoder's tensors start with
HERE = Path(__file__).parent


def fill(settings: Any, model: nn.Module, called: str | None = None) -> str:
    """Fill a detector with the packaged model of its kind, around the encoder that it has. Return the sha256 of the model's file.

    called: its name in a pipeline, for errors; its kind by default. Raises BadInput if that kind has no packaged model, or if it was
    trained with other settings.
    """
    name = kind_of(settings)
    if name not in MODELS:
        raise BadInput(f"{name}: no model of it comes with the package, but of {', '.join(MODELS)}; name a model folder, or train one")
    weights, about = (HERE / file for file in MODELS[name])
    said = trained_otherwise(name, settings, json.loads(about.read_text(encoding="utf-8"))["settings"])
    if said:
        raise BadInput(f"detectors.{called or name}: the packaged model was trained with other settings; say {said}, or train one")
    tensors = read_weights(weights)
    tensors |= {tensor: value for tensor, value in model.state_dict().items() if tensor.startswith(ENCODER)}
    wrong = misfits(tensors, model)
    if wrong:
        raise BadInput(f"{weights}: does not fit the detector's settings, {as_line(wrong)}; install changepair again")
    model.load_state_dict(tensors)
    return sha256(weights)


def packaged_settings(name: str) -> Any:
    """Return the settings that the packaged model of that kind was trained with."""
    trained = json.loads((HERE / MODELS[name][1]).read_text(encoding="utf-8"))
    return settings_from_json(DETECTORS[name].settings, trained["settings"])


def write(name: str, folder: Path) -> None:
    """Write the packaged model of that name from a model folder."""
    weights, about = (HERE / file for file in MODELS[name])
    tensors = {tensor: value for tensor, value in read_weights(folder / MODEL_NAME).items() if not tensor.startswith(ENCODER)}
    with written_beside(weights) as partial:
        save_file(tensors, partial)
    content = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    write_text(about, json.dumps(content, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
