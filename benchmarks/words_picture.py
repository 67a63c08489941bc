"""What words find, as a picture: `python benchmarks/words_picture.py docs/words.png`.

A heap of photos, clips, sounds, point clouds and texts is embedded in the space of meaning and searched with `QUERIES`.
Each row shows what `Neighbours` returns, nearest first, whatever it is. What is not generated comes from packages:

- gradio (Apache-2.0): lion.jpg, of which lion.mp4 is made, cheetah1.jpg, tower.jpg, world.mp4, sax.wav
- scikit-image (CC0): chelsea.png by Stefan van der Walt, coffee.png by Rachel Michetti
- scikit-learn (CC BY 2.0): flower.jpg by vultilion, china.jpg by danielbuechele

Shape legend: h height, w width of a picture.
"""

from __future__ import annotations

import argparse
import tempfile
import textwrap
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy.signal import butter, sosfilt
from soundfile import write
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

import polysense
from polysense.apps.examples import MAKERS
from polysense.apps.panels import GREY, INK, PALE, bare, plain
from polysense.apps.pictures import guess_modality
from polysense.backbone.anchor import load_anchor
from polysense.data.audio import read_audio
from polysense.data.image import read_image
from polysense.data.point_cloud import read_cloud
from polysense.data.text import read_texts
from polysense.data.video import read_video
from polysense.neighbours import Neighbours
from polysense.training import cloud_furniture, cloud_things  # noqa: F401  they register their programs
from polysense.training.synthetic_clouds import PROGRAMS, sample

QUERIES = ("a big cat", "the sound of rain", "something to sit on", "plants and flowers")
PACKAGED = ("gradio/media_assets/images/lion.jpg", "gradio/media_assets/images/cheetah1.jpg",
            "gradio/media_assets/images/tower.jpg", "gradio/media_assets/videos/world.mp4",
            "gradio/media_assets/audio/sax.wav", "skimage/data/chelsea.png", "skimage/data/coffee.png",
            "sklearn/datasets/images/flower.jpg", "sklearn/datasets/images/china.jpg")  # fmt: skip
CREDITS = {
    "flower": "vultilion, CC BY 2.0, cropped",
    "china": "danielbuechele, CC BY 2.0, cropped",
}  # named where shown
MADE = ("lion.mp4", "rain.wav", "clock.wav", "chair.ply", "table.ply", "forecast.txt")  # by apps/examples.py
CLOUDS = ("animal", "car", "sofa", "stool", "potted plant", "conifer")
TEXTS = {
    "kitten": "The kitten chased its tail until it fell asleep on the rug.",
    "storm": "Thunder rolled over the hills, and then the rain came down.",
    "bench": "An old bench stands under the oak; sit down a while.",
    "roses": "Water the roses in the evening and cut off what has faded.",
    "jazz": "The band plays jazz on Fridays: trumpet, piano, drums.",
}
K, RATE, SIZE = 4, 16_000, (1100, 620)  # tiles a row, hertz, pixels
LEFT, TOP, WIDE, HIGH, GAP, ROW = 262, 14, 194, 112, 14, 147  # pixels: where tiles begin, theirs, and a row's height


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the .png to write")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        found = Neighbours(load_anchor().dim)
        for sense, paths in groupby(sorted(make_heap(Path(folder)), key=guess_modality), guess_modality):
            found.add(polysense.load(f"{sense.replace('_', '-')}-meaning")([str(path) for path in paths]), sense)
        figure = Figure((SIZE[0] / 100, SIZE[1] / 100), dpi=100, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        note = f"The nearest {K} of {len(found)} inputs of {len(TILES)} senses, found by words alone, with cosines."
        for i, (query, hits) in enumerate(zip(QUERIES, found.search(load_anchor()(QUERIES).numpy(), K))):
            y = TOP + i * ROW
            say(figure, 24, y + HIGH / 2, textwrap.fill(f"“{query}”", 14), fontsize=19, weight="bold", linespacing=1.25)
            for j, hit in enumerate(hits):
                x, name = LEFT + j * (WIDE + GAP), Path(hit.source).stem
                axes = figure.add_axes((x / SIZE[0], 1 - (y + HIGH) / SIZE[1], WIDE / SIZE[0], HIGH / SIZE[1]))
                bare(axes).spines[:].set(visible=True, color=PALE)
                TILES[hit.modality](axes, hit.source)
                below = y + HIGH + 12
                say(figure, x, below, f"{hit.modality.split('_')[-1]} · {name}", fontsize=9.5, color=GREY)
                say(figure, x + WIDE, below, f"{hit.score:.2f}", fontsize=11, weight="bold", ha="right")
                note += f"  {name.capitalize()}: {CREDITS[name]}." if name in CREDITS else ""
        say(figure, LEFT, SIZE[1] - 14, note, fontsize=8.5, color=GREY)
        canvas.draw()  # a palette takes a quarter of the bytes that savefig writes
        Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(256).save(out, "png", optimize=True)


def make_heap(folder: Path) -> list[Path]:
    """Writes what is generated; returns the paths of all that is searched."""
    for name in MADE:
        MAKERS[name](folder / name)
    for name in CLOUDS:
        rng = np.random.default_rng(2)
        points = sample(PROGRAMS[name](rng), 8192, rng) * [-1, -1, 1]  # half a turn: they face where the chair does
        np.savetxt(folder / f"{name}.xyz", points, "%.4f")
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    rng, t = np.random.default_rng(7), np.arange(6 * RATE) / RATE
    hiss, rumble = (sosfilt(butter(2, band, "bandpass", fs=RATE, output="sos"), rng.normal(size=len(t)))
                    for band in ((200, 3000), (25, 220)))  # fmt: skip
    claps = sum(size * np.exp(-np.maximum(t - at, 0)) * (t >= at) for at, size in ((0.4, 1.0), (0.9, 0.7), (1.8, 0.8)))
    for name, wave in (("surf", (0.15 + np.sin(np.pi * t / 3) ** 4) * hiss), ("thunder", claps * rumble)):
        write(folder / f"{name}.wav", 0.8 * wave / np.abs(wave).max(), RATE)
    packaged = [Path(str(files(package))) / name for package, _, name in (path.partition("/") for path in PACKAGED)]
    return packaged + sorted(folder.iterdir())


def say(figure: Figure, x: float, y: float, text: str, color: str = INK, **style: Any) -> None:
    """Text whose middle lies y pixels below the top."""
    figure.text(x / SIZE[0], 1 - y / SIZE[1], plain(text), va="center", color=color, **style)


def draw_photo(axes: Axes, source: str) -> None:
    """The part of a photo that fills the tile, or of a clip's middle frame, with a mark that says it plays."""
    clip = guess_modality(source) == "video"
    picture = read_video(source, 3, target=400).frames[1] if clip else np.asarray(read_image(source, target=400))
    h, w, _ = picture.shape
    high, wide = min(h, round(w * HIGH / WIDE)), min(w, round(h * WIDE / HIGH))
    top, left = (h - high) // 4, (w - wide) // 2  # from above the middle: there the heads are
    axes.imshow(picture[top : top + high, left : left + wide], aspect="auto")
    if clip:
        axes.scatter(0.5, 0.5, s=900, c="black", alpha=0.55, linewidths=0, transform=axes.transAxes)
        axes.scatter(0.51, 0.5, s=190, c="white", marker=">", linewidths=0, transform=axes.transAxes)


def draw_audio(axes: Axes, source: str) -> None:
    wave = torch.as_tensor(read_audio(source, RATE).wave, dtype=torch.float32)
    mel = MelSpectrogram(RATE, n_fft=2048, hop_length=len(wave) // (WIDE // 2), n_mels=HIGH // 2, f_min=40)
    axes.imshow(AmplitudeToDB(top_db=70)(mel(wave)).numpy(), origin="lower", aspect="auto", cmap="magma")


def draw_cloud(axes: Axes, source: str) -> None:
    """Seen from the front, a little from the side and from above; coloured by height."""
    x, y, z = read_cloud(source).xyz.T
    turn, tilt = np.radians((35, 22))
    across, deep = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    order = np.argsort(z * np.sin(tilt) - deep * np.cos(tilt))  # near points over far ones
    up = z * np.cos(tilt) + deep * np.sin(tilt)
    axes.scatter(across[order], up[order], c=z[order], s=2, linewidths=0)
    axes.set(xmargin=0.08, ymargin=0.08, adjustable="datalim", aspect="equal")


def draw_text(axes: Axes, source: str) -> None:
    shown = textwrap.shorten(next(iter(read_texts(source))).text, 84, placeholder=" …")
    axes.text(0.06, 0.5, plain(textwrap.fill(shown, 21)), va="center", fontsize=11, color=INK, linespacing=1.3)


TILES = {"image": draw_photo, "video": draw_photo, "audio": draw_audio, "point_cloud": draw_cloud, "text": draw_text}

if __name__ == "__main__":
    main()
