"""Scores pictures with a model that `changepair export` wrote; needs numpy, Pillow and onnxruntime alone.

python score_with_onnx.py line-3-onnx/model.onnx part.png …
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def read(file: str, side: int | None) -> np.ndarray:
    """Reads a picture as 1x3xHxW in [0, 1], squashed to a square where the model wants one."""
    picture = Image.open(file).convert("RGB")
    if side is not None:
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture, dtype=np.float32).transpose(2, 0, 1)[None] / 255


session = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(session.get_modelmeta().custom_metadata_map["changepair"])
for file in sys.argv[2:]:
    scores, maps = session.run(None, {"queries": read(file, None if about["any_size"] else about["resolution"])})
    row, column = np.unravel_index(maps[0].argmax(), maps[0].shape)
    verdict = "" if about["threshold"] is None else "anomalous " if scores[0] > about["threshold"] else "normal "
    print(f"{scores[0]:.6f} {verdict}{file}, most at {column / maps.shape[2]:.0%} from the left, {row / maps.shape[1]:.0%} from the top")
