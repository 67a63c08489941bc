"""Inputs that are the same to the eye or the ear, though no byte of their files is: saved again, resized, resampled.

Shape legend: n inputs, k values of a structure.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from PIL import Image

SIDE = 16  # pixels of a thumbnail
FRAMES, BANDS, EDGES = 48, 24, (100.0, 4000.0)  # of a recording's picture; hertz, below what compression takes away
FLAT = {"picture": 4.0, "recording": 1.0}  # deviation (of 255; decibels) below which there is too little to tell by
# Correlation of two structures of one input. Of 51,040 pairs of ESC-10's clips one lies above it; of clips saved as MP3
# or Ogg, or at half the rate, all.
ALIKE = {"picture": 0.998, "recording": 0.96}
SHADE = 8.0  # greatest difference of what the structures leave out: mean colours, of 255; lengths, in per cent
AT_ONCE = 1024  # structures compared at a time


class Likeness(NamedTuple):
    """What an input is like.

    Attributes:
        kind: "picture" or "recording"; only one kind is compared.
        structure: (k,) of unit length and mean 0: a thumbnail; the course of loudness in bands of frequency.
        shade: What it leaves out: mean colour (3,); the logarithm of the length (1,).
    """

    kind: str
    structure: Float[np.ndarray, " k"]
    shade: np.ndarray


def likeness_of_picture(picture: Image.Image) -> Likeness | None:
    """None where it shows too little."""
    from PIL import Image

    small = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    colour = small.mean((0, 1))
    return _likeness("picture", small - colour, colour)


def likeness_of_sound(wave: Float[np.ndarray, " n"], rate: int) -> Likeness | None:
    """None where it is too short, or nothing in it changes."""
    n = len(wave) // FRAMES
    if n < 256:
        return None
    power = np.abs(np.fft.rfft(wave[: n * FRAMES].reshape(FRAMES, n) * np.hanning(n), axis=1)) ** 2
    edges = np.searchsorted(np.fft.rfftfreq(n, 1 / rate), np.geomspace(*EDGES, BANDS + 1))
    bands = np.stack([power[:, low : max(high, low + 1)].sum(1) for low, high in itertools.pairwise(edges)], 1)
    if not bands.max() > 0:
        return None
    decibels = 10 * np.log10(bands / bands.max() + 1e-6)
    # A band's own mean is taken out: it is what rooms and microphones share, and what compression changes.
    return _likeness("recording", decibels - decibels.mean(0), np.array([100 * np.log(len(wave) / rate)]))


def _likeness(kind: str, structure: np.ndarray, shade: np.ndarray) -> Likeness | None:
    if structure.std() < FLAT[kind]:
        return None
    flat = structure.ravel().astype(np.float32)
    return Likeness(kind, flat / np.linalg.norm(flat), shade)


def near_copies(held: Sequence[Likeness], taught: Sequence[Likeness]) -> list[tuple[int, int]]:
    """Places of inputs held out and of the one learnt from that each shows again; all are of one kind."""
    if not held or not taught:
        return []
    structures = np.stack([one.structure for one in taught])
    shades = np.stack([one.shade for one in taught])
    found = []
    for start in range(0, len(held), AT_ONCE):
        some = held[start : start + AT_ONCE]
        near = np.stack([one.structure for one in some]) @ structures.T
        best = near.argmax(1)
        shade = np.abs(np.stack([one.shade for one in some]) - shades[best]).max(1)
        alike = (near[np.arange(len(some)), best] >= ALIKE[some[0].kind]) & (shade <= SHADE)
        found += [(start + int(i), int(best[i])) for i in alike.nonzero()[0]]
    return found
