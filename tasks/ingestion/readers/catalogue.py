"""Register the datasets that are read as they are distributed, with their readers, licences and home pages."""

from __future__ import annotations

from dataclasses import dataclass

from changepair.tasks.ingestion.listing import Reader
from changepair.tasks.ingestion.readers.classes import cifar10, mnist
from changepair.tasks.ingestion.readers.labelled import aitex, elpv, head_ct, kolektor, sdd2, yes_no
from changepair.tasks.ingestion.readers.tables import real_iad, table, visa
from changepair.tasks.ingestion.readers.trees import Tree


@dataclass(frozen=True)
class Layout:
    """A dataset in its distributed form, or a general layout."""

    title: str
    read: Reader
    licence: str  # of the dataset, as its home page states it; "your own" for a general layout
    home: str  # page to get it from; "" for a general layout


OWN, NC_SA, RESEARCH = "your own", "CC BY-NC-SA 4.0", "for research, see its home"
KAGGLE, MVTEC = "https://www.kaggle.com/datasets", "https://www.mvtec.com/company/research/datasets"
PHOTOGRAPHS = Tree(photographs=True)

LAYOUTS: dict[str, Layout] = {
    "folder": Layout("MVTec AD's layout, or folders of normal and of abnormal pictures", Tree(labelled=True), OWN, ""),
    "photographs": Layout("photographs to make pairs from, in a folder or in folders", PHOTOGRAPHS, OWN, ""),
    "table": Layout("a CSV or parquet file: image, category, split, label, defect, mask", table, OWN, ""),
    "mvtec-ad": Layout("MVTec AD", Tree(), NC_SA, f"{MVTEC}/mvtec-ad"),
    "mvtec-loco": Layout("MVTec LOCO AD", Tree(validation="validation", masks_in_folders=True), NC_SA, f"{MVTEC}/mvtec-loco"),
    "visa": Layout("VisA", visa, "CC BY 4.0", "https://github.com/amazon-science/spot-diff"),
    "btad": Layout("BTAD", Tree(normal="ok"), NC_SA, "https://avires.dimi.uniud.it/papers/btad/btad.zip"),
    "mpdd": Layout("MPDD", Tree(), NC_SA, "https://github.com/stepanje/MPDD"),
    "kolektor-sdd": Layout("KolektorSDD", kolektor, NC_SA, "https://www.vicos.si/resources/kolektorsdd"),
    "kolektor-sdd2": Layout("KolektorSDD2", sdd2, NC_SA, "https://www.vicos.si/resources/kolektorsdd2"),
    "aitex": Layout("AITEX", aitex, RESEARCH, "https://www.aitex.es/afid"),
    "elpv": Layout("ELPV", elpv, NC_SA, "https://github.com/zae-bayern/elpv-dataset"),
    "goods-ad": Layout("GoodsAD", Tree(), RESEARCH, "https://github.com/jianzhang96/GoodsAD"),
    "real-iad": Layout("Real-IAD", real_iad, NC_SA, "https://realiad4ad.github.io/Real-IAD"),
    "dtd-synthetic": Layout("DTD-Synthetic", Tree(), RESEARCH, "https://drive.google.com/drive/folders/10OyPzvI3H6llCZBxKxFlKWt1Pw1tkMK1"),
    "brain-mri": Layout("BrainMRI", yes_no, "not stated", f"{KAGGLE}/navoneel/brain-mri-images-for-brain-tumor-detection"),
    "head-ct": Layout("HeadCT", head_ct, "not stated", f"{KAGGLE}/felipekitamura/head-ct-hemorrhage"),
    "mnist": Layout("MNIST", mnist, "CC BY-SA 3.0", "http://yann.lecun.com/exdb/mnist"),
    "cifar10": Layout("CIFAR-10", cifar10, "not stated", "https://www.cs.toronto.edu/~kriz/cifar.html"),
    "coco": Layout(
        "COCO's photographs, train2017 or val2017", PHOTOGRAPHS, "CC BY 4.0 (annotations); each picture's own", "https://cocodataset.org"
    ),
    "open-images": Layout(
        "Open Images' photographs", PHOTOGRAPHS, "CC BY 2.0, each picture's own", "https://storage.googleapis.com/openimages/web/index.html"
    ),
    "dtd": Layout("Describable Textures Dataset", PHOTOGRAPHS, RESEARCH, "https://www.robots.ox.ac.uk/~vgg/data/dtd"),
}
