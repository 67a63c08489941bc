"""Naming, finding and few-shot learning by words: `python benchmarks/words.py DATA OUT [ROW …]`, one table.

Beside each figure stands ConSE, measured in the same run: the teacher itself reads the test input, and its ten most
probable tags, weighted, are carried into the anchor's space (Norouzi et al. 2014). What is shipped sees the input
alone. Vectors of test inputs are kept in OUT, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sets
import torch
from jaxtyping import Float
from make_meaning import imagenet_names, sound_names
from torch import Tensor
from words_few import few_shot

import polysense
from polysense.backbone.anchor import load_anchor
from polysense.data.audio import read_audio
from polysense.data.dataset import class_folders
from polysense.data.image import read_image
from polysense.training.meaning import consensus, top_words
from polysense.words import TEMPLATES, word_vectors

ENDINGS = (".jpg", ".ogg", ".npy")
# Words for class names that say something else than what is seen or heard.
WORDS = {"Faces": "face", "Faces_easy": "face of a person", "car_side": "side of a car", "airplanes": "airplane",
         "Motorbikes": "motorbike", "Leopards": "leopard"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Heap:
    """Test inputs of one kind, by class."""

    modality: str
    folder: Callable[[Path, Path], Path]  # (data, views) -> where class_folders finds a test part
    reach: float | None = None


def first(runs: sets.Runs) -> Callable[[Path, Path], Path]:
    return lambda data, work: runs(data, work)[0].test


HEAPS = {
    "cifar": Heap("image", first(sets.cifar(few=True)), 0.50),
    "caltech101": Heap("image", lambda data, work: data / "image/caltech101", 0.44),
    "tiny200": Heap("image", first(sets.tiny_imagenet)),
    "esc10": Heap("audio", first(sets.esc10), 0.76),
    "urbansound": Heap("audio", lambda data, work: data / "audio/urbansound8k", 0.50),
    "furniture": Heap("point_cloud", first(sets.furniture), 0.35),
}
# Sounds whose thing can be seen, and the classes of pictures that show it.
SHARED = {
    "dog": (("dog_bark",), ("dog", "dalmatian", "Chihuahua", "Yorkshire terrier", "golden retriever",
                            "Labrador retriever", "German shepherd", "standard poodle")),
    "rooster": (("rooster",), ("rooster",)),
    "helicopter": (("helicopter",), ("helicopter",)),
    "sea": (("sea_waves",), ("seashore", "cliff", "breakwater", "lakeside")),
    "car": (("car_horn", "engine_idling"), ("automobile", "truck", "car_side", "convertible", "sports car", "limousine",
                                            "beach wagon", "police van", "moving van", "school bus")),
}  # fmt: skip


class Bench:
    """Vectors of every heap, by what ships and by ConSE; computed when first asked for."""

    def __init__(self, data: Path, out: Path) -> None:
        self.data, self.out, self.anchor = data, out, load_anchor()
        out.mkdir(parents=True, exist_ok=True)

    def items(self, name: str, part: str = "test") -> tuple[list[Path], list[str]]:
        """Files and the words for their classes."""
        found = class_folders(HEAPS[name].folder(self.data, self.out / "views"), ENDINGS)
        chosen = [item for item in found.items if item.split == part]
        return [item.source for item in chosen], [self.word(name, item.target) for item in chosen]

    def word(self, name: str, label: str) -> str:
        if name == "tiny200":
            import pandas as pd

            table = pd.read_csv(self.data / "image/tiny_imagenet/classes.csv").set_index("wnid")["class_name"]
            return str(table[label]).split(",")[0].strip()
        return WORDS.get(label, label.replace("_", " "))

    def vectors(self, name: str) -> Float[Tensor, "r d"]:
        return self._kept(f"{name}_shipped", lambda files: _shipped(HEAPS[name].modality, files), name)

    def consensus(self, name: str) -> Float[Tensor, "r d"] | None:
        """None for clouds, of which no teacher knows anything."""
        modality = HEAPS[name].modality
        if modality == "point_cloud":
            return None
        names = imagenet_names() if modality == "image" else sound_names(self.data)
        vocabulary = word_vectors(self.anchor, names, TEMPLATES[modality])
        teacher = _lite0 if modality == "image" else _yamnet(self.data)
        scores = self._kept(f"{name}_teacher", teacher, name)
        return consensus(*top_words(scores), vocabulary)

    def _kept(self, key: str, make: Callable[[Sequence[Path]], Tensor], name: str) -> Tensor:
        file = self.out / f"{key}.npy"
        if not file.exists():
            np.save(file, make(self.items(name)[0]).numpy())
        return torch.from_numpy(np.load(file))

    def classes(self, name: str) -> tuple[list[str], Float[Tensor, "c d"]]:
        names = sorted(set(self.items(name)[1]))
        return names, word_vectors(self.anchor, [[n] for n in names], TEMPLATES[HEAPS[name].modality])


def _shipped(modality: str, files: Sequence[Path]) -> Tensor:
    pipeline = polysense.load(f"{modality.replace('_', '-')}-meaning")
    sources: list[Any] = [np.load(file) if file.suffix == ".npy" else file for file in files]
    return torch.from_numpy(np.stack([answer.vector for answer in pipeline(sources)]))


@torch.inference_mode()
def _lite0(files: Sequence[Path]) -> Tensor:
    """Class probabilities by EfficientNet-lite0 at 224 pixels."""
    from polysense.training.teachers import load_lite0

    model, scores = load_lite0(), []
    for start in range(0, len(files), 32):
        pixels = np.stack([np.asarray(read_image(f).resize((224, 224), 3)) for f in files[start : start + 32]])
        scores.append(model((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128).softmax(-1))
    return torch.cat(scores)


def _yamnet(data: Path) -> Callable[[Sequence[Path]], Tensor]:
    from polysense.training.teachers import Yamnet

    def read(files: Sequence[Path]) -> Tensor:
        teacher = Yamnet(data / "teachers/yamnet/yamnet.tflite")
        return torch.from_numpy(np.stack([teacher.tags(read_audio(file, 16_000).wave) for file in files]))

    return read


def naming(bench: Bench, name: str) -> dict[str, Any]:
    """Accuracy of the nearest class name, and of the five nearest."""
    labels = bench.items(name)[1]
    names, vectors = bench.classes(name)
    y = torch.tensor([names.index(label) for label in labels])

    def score(x: Tensor | None) -> dict[str, float]:
        if x is None:
            return {}
        near = (x @ vectors.T).topk(min(5, len(names)), 1).indices == y[:, None]
        return {"top1": float(near[:, 0].float().mean()), "top5": float(near.any(1).float().mean())}

    return {"row": f"{name} by words", "shipped": score(bench.vectors(name)), "ConSE": score(bench.consensus(name)),
            "reach": HEAPS[name].reach, "inputs": len(y), "classes": len(names)}  # fmt: skip


def finding(bench: Bench, name: str, heaps: Sequence[str]) -> dict[str, Any]:
    """Words -> inputs of several sets in one heap: mean average precision and recall at 10 over the class names."""
    labels = np.array([label for heap in heaps for label in bench.items(heap)[1]])
    queries = sorted(set(labels))
    vectors = word_vectors(bench.anchor, [[query] for query in queries], TEMPLATES[HEAPS[heaps[0]].modality])

    def score(parts: Sequence[Tensor | None]) -> dict[str, float]:
        near = (vectors @ torch.cat([part for part in parts if part is not None]).T).argsort(1, descending=True).numpy()
        precisions, recalls = [], []
        for query, order in zip(queries, near, strict=True):
            hits = labels[order] == query
            ranks = np.flatnonzero(hits) + 1
            precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
            recalls.append(hits[:10].sum() / min(10, len(ranks)))
        return {"map": float(np.mean(precisions)), "recall10": float(np.mean(recalls))}

    return {"row": name, "shipped": score([bench.vectors(heap) for heap in heaps]),
            "ConSE": score([bench.consensus(heap) for heap in heaps]),
            "inputs": len(labels), "queries": len(queries)}  # fmt: skip


def crossing(bench: Bench) -> dict[str, Any]:
    """Sound -> picture, never trained as pairs: precision at 10 over the sounds of things that can be seen."""
    seen = ("cifar", "caltech101", "tiny200")
    pictures = np.array([label for heap in seen for label in bench.items(heap)[1]])
    heard = [(heap, label) for heap in ("esc10", "urbansound") for label in bench.items(heap)[1]]
    shown = torch.cat([bench.vectors(heap) for heap in seen])
    sounds = torch.cat([bench.vectors(heap) for heap in ("esc10", "urbansound")])
    scores, chances, each = [], [], {}
    for thing, (heard_as, seen_as) in SHARED.items():
        right = np.isin(pictures, [WORDS.get(name, name.replace("_", " ")) for name in seen_as])
        rows = [i for i, (_, label) in enumerate(heard) if label.replace(" ", "_") in heard_as]
        near = (sounds[rows] @ shown.T).topk(10, 1).indices.numpy()
        each[thing] = float(right[near].mean())
        scores += right[near].mean(1).tolist()
        chances += [float(right.mean())] * len(rows)
    return {"row": "sound → picture, precision at 10", "shipped": {"p10": float(np.mean(scores)), **each},
            "chance": float(np.mean(chances)), "inputs": len(pictures), "queries": len(scores)}  # fmt: skip


ROWS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    **{name: (lambda bench, name=name: naming(bench, name)) for name in HEAPS if name != "tiny200"},
    "sounds": lambda bench: finding(bench, "words → sounds", ("esc10", "urbansound")),
    "pictures": lambda bench: finding(bench, "words → pictures", ("caltech101", "tiny200")),
    "crossing": crossing,
    **{f"few_{name}": (lambda bench, name=name: few_shot(bench, name))
       for name in ("caltech101", "esc10", "urbansound", "furniture")},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", nargs="*", default=list(ROWS), choices=[*ROWS, []])
    args = parser.parse_args()
    bench = Bench(args.data, args.out)
    for name in args.rows:
        line = {**ROWS[name](bench), "date": time.strftime("%Y-%m-%d")}
        print(json.dumps(line, ensure_ascii=False), flush=True)
        with (args.out / "words.jsonl").open("a") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
