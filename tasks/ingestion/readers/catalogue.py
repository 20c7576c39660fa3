"""Registers the datasets this project reads as they are distributed: for each its reader, terms and home."""

from __future__ import annotations

from dataclasses import dataclass

from changepair.tasks.ingestion.listing import Reader
from changepair.tasks.ingestion.readers.classes import cifar10, mnist
from changepair.tasks.ingestion.readers.labelled import aitex, elpv, head_ct, kolektor, sdd2, yes_no
from changepair.tasks.ingestion.readers.tables import real_iad, table, visa
from changepair.tasks.ingestion.readers.trees import Tree


@dataclass(frozen=True)
class Layout:
    """A dataset as it is distributed, or a general way to lay one out."""

    title: str
    read: Reader
    licence: str  # of the dataset, as its home states it; "your own" for a general layout
    home: str  # where to get it; "" for a general layout


OWN = "your own"
NC_SA = "CC BY-NC-SA 4.0"

LAYOUTS: dict[str, Layout] = {
    "folder": Layout("MVTec AD's layout, or folders of normal and of abnormal pictures", Tree(labelled=True), OWN, ""),
    "photographs": Layout("photographs to make pairs from, in a folder or in folders", Tree(photographs=True), OWN, ""),
    "table": Layout("a CSV or parquet file: image, category, split, label, defect, mask", table, OWN, ""),
    "mvtec-ad": Layout("MVTec AD", Tree(), NC_SA, "https://www.mvtec.com/company/research/datasets/mvtec-ad"),
    "mvtec-loco": Layout(
        "MVTec LOCO AD",
        Tree(validation="validation", masks_in_folders=True),
        NC_SA,
        "https://www.mvtec.com/company/research/datasets/mvtec-loco",
    ),
    "visa": Layout("VisA", visa, "CC BY 4.0", "https://github.com/amazon-science/spot-diff"),
    "btad": Layout("BTAD", Tree(normal="ok"), NC_SA, "https://avires.dimi.uniud.it/papers/btad/btad.zip"),
    "mpdd": Layout("MPDD", Tree(), NC_SA, "https://github.com/stepanje/MPDD"),
    "kolektor-sdd": Layout("KolektorSDD", kolektor, NC_SA, "https://www.vicos.si/resources/kolektorsdd"),
    "kolektor-sdd2": Layout("KolektorSDD2", sdd2, NC_SA, "https://www.vicos.si/resources/kolektorsdd2"),
    "aitex": Layout("AITEX", aitex, "for research, see its home", "https://www.aitex.es/afid"),
    "elpv": Layout("ELPV", elpv, NC_SA, "https://github.com/zae-bayern/elpv-dataset"),
    "goods-ad": Layout("GoodsAD", Tree(), "for research, see its home", "https://github.com/jianzhang96/GoodsAD"),
    "real-iad": Layout("Real-IAD", real_iad, NC_SA, "https://realiad4ad.github.io/Real-IAD"),
    "dtd-synthetic": Layout(
        "DTD-Synthetic", Tree(), "for research, see its home", "https://drive.google.com/drive/folders/10OyPzvI3H6llCZBxKxFlKWt1Pw1tkMK1"
    ),
    "brain-mri": Layout(
        "BrainMRI", yes_no, "not stated", "https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection"
    ),
    "head-ct": Layout("HeadCT", head_ct, "not stated", "https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage"),
    "mnist": Layout("MNIST", mnist, "CC BY-SA 3.0", "http://yann.lecun.com/exdb/mnist"),
    "cifar10": Layout("CIFAR-10", cifar10, "not stated", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "coco": Layout(
        "COCO's photographs, train2017 or val2017",
        Tree(photographs=True),
        "CC BY 4.0 (annotations); each picture's own",
        "https://cocodataset.org",
    ),
    "open-images": Layout(
        "Open Images' photographs",
        Tree(photographs=True),
        "CC BY 2.0, each picture's own",
        "https://storage.googleapis.com/openimages/web/index.html",
    ),
    "dtd": Layout(
        "Describable Textures Dataset", Tree(photographs=True), "for research, see its home", "https://www.robots.ox.ac.uk/~vgg/data/dtd"
    ),
}
