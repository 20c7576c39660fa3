"""Score pictures with an image-text model by texts alone."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor

# WinCLIP's compositional prompts: every state in every template (Jeong et al., CVPR 2023, supplementary, table 7), as InCTRL uses them.
NORMAL_STATES = ("{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect", "{} without damage")
ANOMALOUS_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
PHOTOGRAPHS = ("cropped photo", "close-up photo", "bright photo", "dark photo", "jpeg corrupted photo", "blurry photo", "photo")
SIZES = ("small", "large")
PURPOSES = ("visual inspection", "anomaly detection")
TEMPLATES = (
    *(f"a {photograph} of {article} {{}}." for photograph in PHOTOGRAPHS for article in ("a", "the")),
    *(f"a photo of {article} {size} {{}}." for size in SIZES for article in ("a", "the")),
    *(f"a photo of {article} {{}} for {purpose}." for purpose in PURPOSES for article in ("a", "the")),
)
# Natural objects have no flaws: normal means that they are there (InCTRL, section 3.2).
NATURAL = ("a photo of {} for anomaly detection.", "a photo without {} for anomaly detection.")
TOGETHER = "+"  # between classes that are one category
TEMPERATURE = 100.0  # CLIP's logit scale at the end of its training


def sentences(category: str, *, natural: bool) -> tuple[list[str], list[str]]:
    """Return the sentences for normal and for anomalous pictures of a category."""
    name = category.replace("_", " ").replace("-", " ")
    if natural:
        return [NATURAL[0].format(name)], [NATURAL[1].format(name)]
    normal, anomalous = (
        [template.format(state.format(name)) for state in states for template in TEMPLATES] for states in (NORMAL_STATES, ANOMALOUS_STATES)
    )
    return normal, anomalous


class TextPrior:
    """Score embeddings of pictures by texts. The sentences of a category are embedded once."""

    def __init__(self, embed: Callable[[list[str]], Tensor], natural: Collection[str] = ()) -> None:
        """embed: texts to embeddings NxD. natural: categories of natural objects, which get one sentence each."""
        self.embed = embed
        self.natural = frozenset(natural)
        self._known: dict[str, Tensor] = {}

    def embeddings(self, category: str) -> Tensor:
        """Return the mean directions of the normal and of the anomalous sentences, 2xD, unit length. Of a category a+b, each class has its
        own sentences and the same weight."""
        if category not in self._known:
            classes = [sentences(name, natural=name in self.natural) for name in category.split(TOGETHER)]
            means = [torch.stack([F.normalize(self.embed(texts), dim=1).mean(dim=0) for texts in pair]) for pair in classes]
            self._known[category] = F.normalize(torch.stack(means).mean(dim=0), dim=1)
        return self._known[category]

    def forget(self) -> None:
        """Clear the cache; call it when the text tower's weights have changed."""
        self._known.clear()

    def __call__(self, embedding: Tensor, category: str) -> Tensor:
        """Return the probability of anomalous, Bx..., of embedding BxDx..., from the cosines with both means at temperature 100."""
        known = self.embeddings(category).to(embedding.device)
        with torch.autocast(embedding.device.type, enabled=False):  # a hundredth of a cosine is 1 here
            cosines = torch.einsum("bd...,td->bt...", F.normalize(embedding.float(), dim=1), known)
            return (TEMPERATURE * cosines).softmax(dim=1)[:, 1]
