"""Score pictures with a model that `changepair export` wrote. Needs numpy, Pillow and onnxruntime. Pictures of more than 8 bits also need
the packages that read_pictures.py, next to the model, imports for them. Usage:
python score_with_onnx.py line-3-onnx/model.onnx part.png …
"""

import json
import math
import os
import sys

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import, which writes an id of the machine otherwise

import numpy as np
import onnxruntime
from PIL import Image


def read(path, about):
    """Read a picture as HxWx3 uint8 RGB with the reader next to the model."""
    from read_pictures import Intensity, Range, read_file

    integer, floating = (one and Range(*one) for one in (about["intensity"]["integer"], about["intensity"]["floating"]))
    return read_file(path, Intensity(integer, floating, about["intensity"]["full"]))


def spans(side, count, overlap):
    """List the start and end of each tile along a side of a picture, in pixels; the end is excluded."""
    margin = overlap * side / count if count > 1 else 0
    return [
        (max(0, math.floor(side * place / count - margin)), min(side, math.ceil(side * (place + 1) / count + margin)))
        for place in range(count)
    ]


def square(tile, side, resize):
    """Resize a tile to side x side x 3 in [0, 1], by the setting `resize`."""
    if resize == "aligned":
        return between_corners(between_corners(tile / 255, side).transpose(1, 0, 2), side).transpose(1, 0, 2)
    image = Image.fromarray(tile)
    if resize == "squash":
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) / 255
    short = min(image.size)
    image = image.resize([side if edge == short else int(side * edge / short) for edge in image.size], Image.Resampling.BICUBIC)
    left, top = (round((edge - side) / 2) for edge in image.size)
    return np.asarray(image.crop((left, top, left + side, top + side))) / 255


def between_corners(pixels, side):
    """Resize the first axis; the first and last pixels keep their places."""
    place = np.arange(side, dtype=np.float32) * np.float32((len(pixels) - 1) / (side - 1))  # float32, as in torch
    low, share = np.floor(place).astype(int), (place % 1)[:, None, None]
    return (1 - share) * pixels[low] + share * pixels[np.minimum(low + 1, len(pixels) - 1)]


def laid_out(map_, height, width, resize):
    """Resize a map to the size of its tile. Parts that `crop` removed are 0."""
    high, wide = (min(height, width),) * 2 if resize == "crop" else (height, width)
    top, left = (height - high) // 2, (width - wide) // 2
    whole = np.zeros((height, width), np.float32)
    whole[top : top + high, left : left + wide] = Image.fromarray(map_).resize((wide, high), Image.Resampling.BILINEAR)
    return whole


def ramp(side, overlap):
    """Return the weights of a tile's pixels along a side; they fall towards the edges, where tiles overlap."""
    distance = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
    return np.minimum(distance / max(1, 2 * overlap * side / (1 + 2 * overlap)), 1)


def score(session, about, picture):
    """Score a picture HxWx3 uint8. Return the highest score of its tiles, and their maps joined to HxW."""
    height, width = picture.shape[:2]
    rows, columns = (spans(side, count, about["overlap"]) for side, count in zip((height, width), about["grid"], strict=True))
    scores, total, weight = [], np.zeros((height, width)), np.zeros((height, width))
    for place, ((top, bottom), (left, right)) in enumerate((row, column) for row in rows for column in columns):
        tile = picture[top:bottom, left:right]
        pixels = tile / 255 if about["any_size"] else square(tile, about["resolution"], about["resize"])
        inputs = {"queries": pixels.transpose(2, 0, 1)[None].astype(np.float32)}
        if len(session.get_inputs()) > 1:
            inputs["places"] = np.array([place])
        [found], [map_] = session.run(None, inputs)
        share = np.minimum(ramp(bottom - top, about["overlap"])[:, None], ramp(right - left, about["overlap"]))
        total[top:bottom, left:right] += share * laid_out(map_, bottom - top, right - left, about["resize"])
        weight[top:bottom, left:right] += share
        scores.append(found)
    return max(scores), total / weight


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1])
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[1])))
    about = json.loads(session.get_modelmeta().custom_metadata_map["changepair"])
    if "prompts" in [one.name for one in session.get_inputs()]:
        sys.exit(f"{sys.argv[1]}: takes prompts as an input; export it again with --kit or --prompt")
    for file in sys.argv[2:]:
        value, map_ = score(session, about, read(file, about))
        row, column = np.unravel_index(map_.argmax(), map_.shape)
        verdict = "" if about["threshold"] is None else "anomalous " if value > about["threshold"] else "normal "
        place = f"most at {column / map_.shape[1]:.0%} from the left, {row / map_.shape[0]:.0%} from the top"
        print(f"{value:.6f} {verdict}{file}, {place}")
