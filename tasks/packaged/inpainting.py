"""Load the small inpainting model that comes with this package: inpainter.safetensors, and inpainter.json, its size.

docs/pages/explanation/change-pairs.md describes its training. `python -m changepair.tasks.packaged.inpainting <folder>` writes both from
a folder of the inpainter stage.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from changepair.tasks.common.files import made_anew, write_text, written_beside
from changepair.tasks.encoders.weights import read_weights
from changepair.tasks.inpainting.inpainter import PIPELINE_NAME

HERE = Path(__file__).parent
WEIGHTS, SIZE = "inpainter.safetensors", "inpainter.json"


def write_packaged(folder: Path) -> None:
    """Write folder/pipeline, the packaged model as diffusers saves one."""
    from changepair.tasks.inpainting.crop_pipeline import new_pipeline

    pipeline = new_pipeline(**json.loads((HERE / SIZE).read_text(encoding="utf-8")))
    pipeline.unet.load_state_dict(read_weights(HERE / WEIGHTS))
    with made_anew(folder / PIPELINE_NAME) as partial:
        pipeline.save_pretrained(partial, safe_serialization=True)


def take(folder: Path) -> None:
    """Write the packaged model from an inpainter stage's model."""
    from changepair.tasks.inpainting.residual import PACKED

    unet = folder / PIPELINE_NAME / "unet"
    config = json.loads((unet / "config.json").read_text(encoding="utf-8"))
    size = {"resolution": config["sample_size"] * PACKED, "channels": config["block_out_channels"]}
    with written_beside(HERE / WEIGHTS) as partial:
        shutil.copyfile(unet / "diffusion_pytorch_model.safetensors", partial)
    write_text(HERE / SIZE, json.dumps(size) + "\n")


if __name__ == "__main__":
    take(Path(sys.argv[1]))
