"""Score pictures by texts alone, with an image-text model."""

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
TOGETHER = "+"  # separates classes that form one category
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
    """Scores embeddings of pictures by texts. The sentences of a category are embedded once."""

    def __init__(self, embed: Callable[[list[str]], Tensor], natural: Collection[str] = ()) -> None:
        """Set the function that embeds texts, giving (N, D), and the categories of natural objects, which get one sentence each."""
        self.embed = embed
        self.natural = frozenset(natural)
        self._known: dict[str, Tensor] = {}

    def embeddings(self, category: str) -> Tensor:
        """Return the mean directions of the normal and of the anomalous sentences, (2, D), unit length.

        In a category a+b, each class has its own sentences and the same weight.
        """
        if category not in self._known:
            classes = [sentences(name, natural=name in self.natural) for name in category.split(TOGETHER)]
            means = [torch.stack([F.normalize(self.embed(texts), dim=1).mean(dim=0) for texts in pair]) for pair in classes]
            self._known[category] = F.normalize(torch.stack(means).mean(dim=0), dim=1)
        return self._known[category]

    def forget(self) -> None:
        """Clear the cache; call it when the text tower's weights have changed."""
        self._known.clear()

    def __call__(self, embedding: Tensor, category: str) -> Tensor:
        """Return the probability of anomalous, (B, ...), for an embedding (B, D, ...). It is a softmax of the cosines with both means at
        temperature 100."""
        known = self.embeddings(category).to(embedding.device)
        with torch.autocast(embedding.device.type, enabled=False):  # in full precision: 0.01 of a cosine is 1 in the logits
            cosines = torch.einsum("bd...,td->bt...", F.normalize(embedding.float(), dim=1), known)
            return (TEMPERATURE * cosines).softmax(dim=1)[:, 1]
