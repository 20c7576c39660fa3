"""Find the work that detectors with one encoder network share: feature maps, the memory of prompts, and relations to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from changepair.tasks.detectors.detector import Detector
from changepair.tasks.encoders.encoder import Encoder, Features, FrozenEncoder


@dataclass(frozen=True)
class Shared:
    """Work that detectors share. A host relates queries to prompts for itself and for other detectors."""

    encoder: Encoder
    """Encodes pictures at the scales of all detectors."""
    detectors: Mapping[str, Detector]
    """Detectors by name."""
    places: Mapping[str, Sequence[int]]
    """Indices of each detector's features in the features of `encoder`."""
    hosts: Mapping[str, str]
    """Name of each detector's host. The host of a host is itself."""
    parts: Mapping[str, Callable[[Features], Features]]
    """Functions that select each detector's relation from that of its host."""

    def features(self, name: str, features: Features) -> Features:
        """Select a detector's features from those of `encoder`, as the detector's own encoder computes them."""
        return [features[place] for place in self.places[name]]

    def guests(self, host: str) -> int:
        """Return the number of detectors with this host, including itself."""
        return sum(own == host for own in self.hosts.values())


def share(detectors: Mapping[str, Detector]) -> Shared:
    """Find the shared work of detectors whose encoders have the same network and weights, at any scales."""
    encoder = encoder_of([detector.encoder for detector in detectors.values()])
    places = {name: _places(detector.encoder, encoder) for name, detector in detectors.items()}
    parts = {
        name: {other: part for other, one in detectors.items() if (part := detector.part_of(one)) is not None}
        for name, detector in detectors.items()
    }
    counts = Counter(other for found in parts.values() for other in found)
    hosts = {name: max(found, key=lambda other: counts[other]) for name, found in parts.items()}  # serves most detectors
    return Shared(encoder, detectors, places, hosts, {name: parts[name][host] for name, host in hosts.items()})


def encoder_of(encoders: Sequence[Encoder]) -> Encoder:
    """Return an encoder with the scales of all encoders, which have one network. Raises ValueError if it cannot encode at other scales."""
    first = encoders[0]
    scales = tuple(dict.fromkeys(scale for encoder in encoders for scale in encoder.scales))
    if all(encoder.scales == first.scales for encoder in encoders):
        return first
    if not isinstance(first, FrozenEncoder) or len(first.channels) > first.maps:  # the embedding belongs to the first scale
        raise ValueError(f"{type(first).__name__} cannot encode at the scales of several detectors")
    return first.at(scales)


def _places(own: Encoder, shared: Encoder) -> list[int]:
    """Return the indices of an encoder's features among those of another one with more scales."""
    each = shared.maps // len(shared.scales)
    maps = [shared.scales.index(scale) * each + number for scale in own.scales for number in range(each)]
    return [*maps, *range(shared.maps, len(shared.channels))]
