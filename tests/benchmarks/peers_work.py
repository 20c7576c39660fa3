"""Build the work that peers.py times, for changepair and for each peer. A process imports the packages of its side only.

anomalib's models are those of `anomalib.models` in evaluation mode. Their weights are read from a file instead of a hub.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Work = Callable[[], Any]
CLIP, DINO, WIDE, SMALL = "ViT-B-16-plus-240", "vit_small_patch14_dinov2.lvd142m", "wide_resnet50_2", "resnet18"
SIDE = 256  # pixels of pictures for CNNs
OPENVINO, TORCH = "OpenVINOInferencer", "TorchInferencer"
ONE: Any = {"dynamic_shapes": None}  # exports for batches of one picture, whose shapes are static
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pictures(count: int, side: int, seed: int = 0) -> Any:
    """Return random, smooth pictures (count, 3, side, side) in [0, 1]."""
    import torch

    coarse = torch.rand(count, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")


def normalised(images: Any, mean: Any = MEAN, std: Any = STD) -> Any:
    """Normalise images (B, 3, H, W) in [0, 1], as anomalib's pre-processors do before the model."""
    import torch

    return (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def weights(folder: Path, name: str) -> Path:
    """Return a file of random weights of a network. Another process writes it, because peak memory is measured."""
    file = folder / f"{name}.pt"
    if not file.exists():
        subprocess.run([sys.executable, str(Path(__file__).with_name("peers_cases.py")), "weights", name, str(file)], check=True)
    return file


def write_weights(name: str, file: str) -> None:
    """Write random weights of a network. Blocks that start as the identity get larger weights, so that they contribute."""
    import torch

    torch.manual_seed(0)
    if name == CLIP:
        import open_clip

        state = open_clip.create_model(name, load_weights=False).state_dict()
    else:
        import timm

        state = timm.create_model(name, pretrained=False).state_dict()
        for key, tensor in state.items():
            if re.search(r"\.ls\d\.gamma$", key):  # LayerScale
                tensor.fill_(1.0)
            elif re.search(r"\.bn\d\.weight$", key):  # the last normalisation of a block starts at 0
                tensor.fill_(0.5)
            elif key == "pos_embed":  # both sides resize it, in different ways
                tensor.copy_(tensor[:, :1].expand_as(tensor).clone())
    torch.save(state, file)


# WinCLIP


def our_winclip(batch: int, folder: Path, threads: int) -> Work:
    import torch

    from changepair.tasks.detectors.store import create_detector
    from changepair.tasks.detectors.winclip.settings import WinCLIPSettings
    from changepair.tasks.encoders.settings import EncoderSettings

    detector = create_detector(WinCLIPSettings(encoder=EncoderSettings("open_clip", CLIP, str(weights(folder, CLIP))))).eval()
    torch.save(detector.prior.embeddings("object"), folder / "texts.pt")
    images = pictures(batch, 240)
    return lambda: detector.score(images, [], "object")[0]


def winclip(folder: Path) -> Any:
    """Build anomalib's WinCLIP with our weights, temperature and mean texts; its templates differ in one sentence."""
    import torch
    from anomalib.models import WinClip
    from anomalib.models.image.winclip import torch_model

    torch_model.PRETRAINED = str(weights(folder, CLIP))  # otherwise it is downloaded
    lightning = WinClip("object").eval()
    lightning.model.setup("object")
    lightning.model.temperature = 0.01
    lightning.model._text_embeddings = torch.load(folder / "texts.pt")
    return lightning


def their_winclip(batch: int, folder: Path, threads: int) -> Work:
    model, images = winclip(folder).model, pictures(batch, 240)
    return lambda: model(normalised(images, model.clip.visual.image_mean, model.clip.visual.image_std)).pred_score


# Patches


def our_patches(name: str, layers: tuple[int, ...], side: int, shots: int, search: bool, folder: Path, threads: int) -> Work:
    from changepair.tasks.detectors.residual.settings import PatchResidualSettings
    from changepair.tasks.detectors.store import create_detector
    from changepair.tasks.encoders.settings import EncoderSettings

    encoder = EncoderSettings("timm", name, str(weights(folder, name)), layers, layer_norm=name == DINO)
    share = 0.01 if name == DINO else 0.0  # as in AnomalyDINO; PatchCore uses the maximum
    detector = create_detector(PatchResidualSettings(encoder=encoder, resolution=side, top_share=share, smoothing=4.0)).eval()
    memory, queries = detector.memorise(pictures(shots, side, seed=1)), pictures(1, side)
    if not search:
        return lambda: 2 * detector.score(queries, memory)[0]  # changepair's residual is half of the distance
    features = detector.encoder(queries)
    return lambda: 2 * detector.conclude(features, detector.relate(features, memory))[0]


def anomaly_dino(side: int, shots: int, folder: Path) -> Any:
    """Build anomalib's AnomalyDINO with neither masking nor coreset, as by default."""
    import torch
    from anomalib.models import AnomalyDINO
    from anomalib.models.image.anomaly_dino import torch_model

    extractor = torch_model.TimmFeatureExtractor
    torch_model.TimmFeatureExtractor = lambda **options: extractor(**{**options, "pre_trained": False})  # otherwise it downloads weights
    lightning = AnomalyDINO(encoder_name=DINO, pre_processor=AnomalyDINO.configure_pre_processor((side, side)))
    model = lightning.model
    model.feature_encoder.feature_extractor.load_state_dict(torch.load(weights(folder, DINO)))
    model.train()
    model(normalised(pictures(shots, side, seed=1)))
    model.fit()
    return lightning.eval()


def their_dino(side: int, shots: int, search: bool, folder: Path, threads: int) -> Work:
    model, queries = anomaly_dino(side, shots, folder).model, pictures(1, side)
    if search:
        features = model.extract_features(normalised(queries))
        model.extract_features = lambda _images: features
    return lambda: model(normalised(queries)).pred_score.flatten()


def patchcore(name: str, side: int, shots: int, folder: Path) -> Any:
    """Build anomalib's PatchCore with the patches of all prompts, without a coreset. Its score is the distance to the nearest neighbour."""
    import torch
    from anomalib.models import Patchcore

    lightning = Patchcore(name, ("layer2", "layer3"), pre_trained=False, num_neighbors=1)
    model = lightning.model
    wanted = model.feature_extractor.feature_extractor.state_dict()
    state = torch.load(weights(folder, name))
    model.feature_extractor.feature_extractor.load_state_dict({key: state[key] for key in wanted})
    model.train()
    model(normalised(pictures(shots, side, seed=1)))
    model.memory_bank = torch.vstack(model.embedding_store)
    model.embedding_store.clear()
    return lightning.eval()


def their_patchcore(name: str, side: int, shots: int, search: bool, folder: Path, threads: int) -> Work:
    model, queries = patchcore(name, side, shots, folder).model, pictures(1, side)
    if search:
        features = model.feature_extractor(normalised(queries))
        model.feature_extractor.forward = lambda _images: dict(features)
    return lambda: model(normalised(queries)).pred_score


def their_openvino(build: Callable[[Path], Any], side: int, precision: str, folder: Path, threads: int) -> Work:
    """Export a model of anomalib to OpenVINO and run its inferencer. precision: `f32`, or "" for the plugin's choice."""
    import torch
    from anomalib.deploy import OpenVINOInferencer

    with torch.inference_mode(False), torch.no_grad():
        model = build(folder).to_openvino(folder, build.func.__name__, (side, side), onnx_kwargs=ONE)  # type: ignore[attr-defined]
    config = {"INFERENCE_NUM_THREADS": threads} | ({"INFERENCE_PRECISION_HINT": precision} if precision else {})
    inferencer, queries = OpenVINOInferencer(model, "CPU", config), pictures(1, side).numpy()
    return lambda: inferencer.predict(queries).pred_score.ravel()


# Nearest neighbours: 1,024 queries


def vectors(count: int, channels: int, seed: int) -> Any:
    """Return random unit vectors (count, channels)."""
    import torch

    found = torch.randn(count, channels, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(found, dim=1)


def our_nearest(channels: int, shots: int, folder: Path, threads: int) -> Work:
    from changepair.tasks.detectors.patches import nearest_cosine

    query, memory = (vectors(count * 1024, channels, seed).view(count, 32, 32, channels) for seed, count in enumerate((1, shots)))
    query, memory = query.permute(0, 3, 1, 2).contiguous(), memory.permute(0, 3, 1, 2).contiguous()
    return lambda: nearest_cosine(query, memory).amax(dim=1).flatten()


def their_faiss(channels: int, shots: int, folder: Path, threads: int) -> Work:
    import faiss

    faiss.omp_set_num_threads(threads)
    query, memory = (vectors(count * 1024, channels, seed).numpy() for seed, count in enumerate((1, shots)))
    index = faiss.IndexFlatIP(channels)
    index.add(memory)
    return lambda: index.search(query, 1)[0].ravel()


def their_nearest(channels: int, shots: int, folder: Path, threads: int) -> Work:
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    query, memory = (vectors(count * 1024, channels, seed) for seed, count in enumerate((1, shots)))
    model = PatchcoreModel(("layer1",), SMALL, pre_trained=False)
    model.memory_bank = memory
    return lambda: 1 - model.nearest_neighbors(query, n_neighbors=1)[0] ** 2 / 2  # the cosine of unit vectors


# Metrics


def masks_and_maps(count: int, folder: Path, threads: int) -> tuple[Any, Any]:
    """Return maps of 256x256 with one to three rectangles in every second mask."""
    import cv2
    import numpy as np
    from scipy import ndimage

    cv2.setNumThreads(threads)
    files = folder / f"masks-{count}.npy", folder / f"maps-{count}.npy"
    if not files[1].exists():
        random = np.random.default_rng(0)
        masks = np.zeros((count, 256, 256), dtype=bool)
        for mask in masks[::2]:
            for _ in range(random.integers(1, 4)):
                top, left, height, width = (*random.integers(0, 200, 2), *random.integers(8, 50, 2))
                mask[top : top + height, left : left + width] = True
        maps = ndimage.gaussian_filter(random.random(masks.shape, dtype=np.float32), (0, 4, 4))
        np.save(files[0], masks)
        np.save(files[1], 0.7 * (maps - maps.min()) / np.ptp(maps) + np.float32(0.2) * masks)
    return np.load(files[0]), np.load(files[1])


def our_aupro(count: int, folder: Path, threads: int) -> Work:
    sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))
    from tallies import pixels_tally

    from changepair.tasks.scoring.metrics import aupro

    masks, maps = masks_and_maps(count, folder, threads)
    return lambda: [float(aupro(pixels_tally(masks, maps)))]


def their_aupro(count: int, folder: Path, threads: int) -> Work:
    import torch
    from anomalib.metrics.aupro import _AUPRO

    masks, maps = map(torch.from_numpy, masks_and_maps(count, folder, threads))

    def work() -> list[float]:
        metric = _AUPRO()
        metric.update(maps, masks.int())
        return [float(metric.compute())]

    return work


# Commands that are timed as whole processes


def write_pictures(count: str, folder: str) -> None:
    """Write random pictures of 256x256 pixels as PNG files."""
    from PIL import Image

    for number, picture in enumerate(pictures(int(count), 256)):
        Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy()).save(Path(folder) / f"{number:04}.png")


def export(folder: str) -> None:
    """Export a PatchCore of one prompt for both of anomalib's inferencers."""
    model = patchcore(SMALL, SIDE, 1, Path(folder))
    model.to_torch(folder)
    model.to_openvino(folder, input_size=(SIDE, SIDE), onnx_kwargs=ONE)


def infer(kind: str, model: str, threads: str, *files: str) -> None:
    """Score files with one of anomalib's inferencers, as its documentation shows."""
    if kind == OPENVINO:
        from anomalib.deploy import OpenVINOInferencer

        inferencer: Any = OpenVINOInferencer(model, "CPU", {"INFERENCE_NUM_THREADS": int(threads)})
    else:
        import torch
        from anomalib.deploy import TorchInferencer

        torch.inference_mode().__enter__()
        inferencer = TorchInferencer(model, "cpu")
    for file in files:
        print(file, float(inferencer.predict(file).pred_score.item()))
