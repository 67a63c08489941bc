"""Makes the bundles that lead into the space of meaning: `python benchmarks/make_meaning.py DATA CACHE [NAME …]`.

NAME is image, audio, point_cloud or video; each is written to polysense/weights/bundles/MODALITY-meaning. CACHE holds
what `cache_embedded.py` wrote (pictures, clouds). Words come from openly licensed teachers and from the names of
generated shapes. No label of a data set enters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from make_bundles import embedded_folder_in_checkout
from safetensors.torch import load_file
from torch import Tensor

from polysense.backbone.anchor import load_anchor
from polysense.core.types import Tokens
from polysense.data.audio import AUDIO_ENDINGS, read_audio
from polysense.data.dataset import list_files
from polysense.heads.meaning import MeaningHead
from polysense.pipeline import Pipeline
from polysense.saving import save
from polysense.tokenizers.image_grid import cell_centres
from polysense.training.meaning import TEMPERATURE, Lesson, consensus, learn_meaning, top_words
from polysense.training.pretrain_cache import EARLY
from polysense.training.pretrain_clouds import SETS
from polysense.training.synthetic_clouds import PROGRAMS
from polysense.training.teachers import Yamnet, load_lite0
from polysense.words import TEMPLATES, word_vectors

PICTURES = {"plain": 0.4, "tiny_words": 0.4, "cifar": 0.2}  # caches and their shares of a batch
MOST = 12_000  # rows of a cache
MIXTURES = 2000  # generated recordings
HIDDEN = 512  # width of the projection's hidden layer: a linear map does not reach what teachers say
# What the programs' own names leave unsaid; the abstract ones say nothing.
SHAPES = {
    "standing_lamp": ["floor lamp", "lamp"], "hanging_lamp": ["ceiling lamp", "chandelier", "lamp"],
    "desk_lamp": ["desk lamp", "lamp"], "basin": ["wash basin", "sink", "bathtub"], "screen": ["television", "monitor"],
    "socket": ["wall socket", "electrical outlet"], "plug": ["electrical plug"], "machine": ["washing machine", "oven",
    "refrigerator", "household appliance"], "hood": ["cooker hood"], "two_wheels": ["bicycle", "motorcycle"],
    "vessel": ["ship", "boat"], "cup": ["cup", "mug"], "dish": ["bowl", "plate", "dish"], "cutlery": ["fork", "spoon",
    "knife"], "cabinet": ["cabinet", "wardrobe", "chest of drawers"], "bookcase": ["bookcase", "shelf"],
    "potted_plant": ["potted plant"], "lorry": ["truck"], "gable_house": ["house"], "flat_building": ["building"],
    "mast": ["pole"], "column": ["pillar", "column"], "wires": ["power line"], "terrain": ["ground"],
    "slab": ["floor"], "sofa": ["sofa", "couch"],
}  # fmt: skip
INPUTS = {  # of each lesson, for the card
    "plain": "pictures of Caltech-101 (train) and ImageNet, whole and cropped",
    "tiny_words": "of Tiny-ImageNet (train)", "cifar": "of CIFAR-10 (train)",
    "clips": "recordings of debian_sounds and ESC-10 (folds 1-3)",
    "mixtures": "recordings mixed of them", "generated": "generated clouds",
    "furniture": "views of Sweet Home 3D furniture (train), by its renders",
}  # fmt: skip
ABSTRACT = {"random_boxes", "random_balls", "turned", "star_prism", "radial", "knot", "lattice"}


def imagenet_names() -> list[list[str]]:
    """The synonyms of each of the 1,000 classes."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [[name.strip() for name in info.index_to_description(i).split(",")] for i in range(1000)]


def sound_names(data: Path) -> list[list[str]]:
    """YAMNet's 521 classes; a comma parts what is much the same."""
    import pandas as pd

    table = pd.read_csv(data / "teachers/yamnet/class_map.csv")
    return [[part.strip() for part in str(name).split(",")] for name in table["display_name"]]


@torch.no_grad()
def pictures(data: Path, cache: Path, pipeline: Pipeline) -> dict[str, Lesson]:
    vocabulary = word_vectors(load_anchor(), imagenet_names(), TEMPLATES["image"])
    teacher, tokenizer, lessons = load_lite0()._fc, pipeline.tokenizer, {}
    for name, share in PICTURES.items():
        arrays = load_file(cache / f"{name}.safetensors")
        rows = torch.randperm(len(arrays["maps"]), generator=torch.Generator().manual_seed(0))[:MOST]
        pooled = []
        for part in rows.split(64):
            maps = tokenizer.stem.blocks[EARLY:](arrays["maps"][part].float().permute(0, 3, 1, 2))
            pos = cell_centres(torch.tensor([maps.shape[-2:]]), *maps.shape[-2:])
            x = tokenizer.project(maps.flatten(2).transpose(1, 2)) + tokenizer.position(pos)
            pooled.append(read(pipeline, Tokens(x, None, pos.expand(len(x), -1, -1))))
        scores = teacher(arrays["teacher"][rows].float()).softmax(-1)
        lessons[name] = Lesson(torch.cat(pooled), *top_words(scores), vocabulary, share)
        print(name, len(rows), flush=True)
    return lessons


@torch.no_grad()
def sounds(data: Path, cache: Path, pipeline: Pipeline) -> dict[str, Lesson]:
    """Clips as they are, and generated recordings in which some follow or cover each other.

    Whoever uses the pipeline brings recordings longer than most clips here.
    """
    vocabulary = word_vectors(load_anchor(), sound_names(data), TEMPLATES["audio"])
    files = list_files(data / "audio/debian_sounds", AUDIO_ENDINGS)
    files += [file for file in list_files(data / "audio/esc10", AUDIO_ENDINGS) if file.name[0] in "123"]
    waves, rng = [read_audio(file, 16_000).wave for file in files], np.random.default_rng(0)
    kinds = {"clips": (waves, 0.5), "mixtures": ((mixture(waves, rng) for _ in range(MIXTURES)), 0.5)}
    teacher, lessons = Yamnet(data / "teachers/yamnet/yamnet.tflite"), {}
    for name, (some, share) in kinds.items():
        pooled, scores = [], []
        for wave in some:
            batch = pipeline.tokenizer.collate(pipeline.tokenizer.split(pipeline.tokenizer.read((wave, 16_000)))[:1])
            pooled.append(read(pipeline, pipeline.tokenizer(batch)))
            scores.append(torch.from_numpy(teacher.tags(wave)))
        lessons[name] = Lesson(torch.cat(pooled), *top_words(torch.stack(scores)), vocabulary, share)
        print(name, len(pooled), flush=True)
    return lessons


def mixture(waves: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Two to five seconds: one clip again and again, or several, at random places and loudnesses."""
    out = np.zeros(int(rng.uniform(2, 5) * 16_000), np.float32)
    for _ in range(int(rng.integers(1, 3))):
        wave = waves[int(rng.integers(len(waves)))]
        loudness, again = rng.uniform(0.2, 1.0), rng.random() < 0.6
        start = int(rng.integers(0, 4000))
        while start < len(out):
            part = wave[: len(out) - start]
            out[start : start + len(part)] += loudness * part
            if not again:
                break
            start += len(part) + int(rng.integers(0, 8000))
    return out


@torch.no_grad()
def clouds(data: Path, cache: Path, pipeline: Pipeline) -> dict[str, Lesson]:
    """Generated shapes by their names; furniture by what the teacher of pictures says of its renders."""
    from polysense.training import cloud_abstract, cloud_buildings, cloud_furniture, cloud_things  # noqa: F401

    arrays, anchor = load_file(cache / "clouds.safetensors"), load_anchor()
    shown = [SHAPES.get(name, [name.replace("_", " ")]) for name in PROGRAMS]
    shapes = word_vectors(anchor, shown, TEMPLATES["point_cloud"])
    named = torch.tensor([name not in ABSTRACT for name in PROGRAMS])
    sets, labels = arrays["set"], arrays["label"]
    rows = ((sets == list(SETS).index("generated")) & named[labels.clamp_min(0)]).nonzero()[:, 0]
    generated = Lesson(cut(pipeline, arrays, rows), labels[rows, None], torch.ones(len(rows), 1), shapes, 0.8)
    rows = ((sets == list(SETS).index("furniture")) & (arrays["picture"] >= 0)).nonzero()[:, 0]
    scores = load_lite0()._fc(arrays["teacher"][arrays["picture"][rows]].float()).softmax(-1)
    seen = word_vectors(anchor, imagenet_names(), TEMPLATES["image"])
    return {"generated": generated, "furniture": Lesson(cut(pipeline, arrays, rows), *top_words(scores), seen, 0.2)}


def cut(pipeline: Pipeline, arrays: dict[str, Tensor], rows: Tensor) -> Float[Tensor, "r f"]:
    names = ("groups", "centers", "extent", "profile")
    return torch.cat([read(pipeline, pipeline.tokenizer({name: arrays[name][part].float() for name in names}))
                      for part in rows.split(64)])  # fmt: skip


def read(pipeline: Pipeline, tokens: Tokens) -> Float[Tensor, "b f"]:
    head: Any = pipeline.head
    return head.pool(pipeline.encoder(tokens, layers=head.layers)).half()


# How lessons are read, options of the tokenizer and of the head.
MAKERS: dict[str, tuple[Callable[[Path, Path, Pipeline], dict[str, Lesson]], dict[str, Any], dict[str, Any]]] = {
    "image": (pictures, {"size": 192}, {}),
    "audio": (sounds, {}, {"pooling": ("columns",)}),
    "point_cloud": (clouds, {}, {}),
}


def clips() -> None:
    """Clips are led by the head of pictures: their frames are read by the same stem, and what it says of all frames
    together is what it says of each on average (cosine .92 to .99 on the clips of installed packages)."""
    pictures = Pipeline.from_pretrained("image-meaning")
    pipeline = Pipeline.build("video-meaning", tokenizer=MAKERS["image"][1], head={"hidden": HIDDEN})
    pipeline.head.load_state_dict(pictures.head.state_dict())
    pipeline.about = {**pictures.about, "templates": list(TEMPLATES["video"])}
    save(pipeline, embedded_folder_in_checkout() / "bundles" / "video-meaning", torch.float16)


def calibrate(head: MeaningHead, lessons: Sequence[Lesson]) -> tuple[float, float]:
    """Slope and offset of the probability that a name fits, from its cosine: names that a teacher is sure of, against
    as many drawn at random."""
    from sklearn.linear_model import LogisticRegression

    x, y, generator = [], [], torch.Generator().manual_seed(0)
    for lesson in lessons:
        sure = lesson.weights.amax(1) > 0.5
        vector = head.from_pooled(lesson.x[sure].float())["vector"]
        right = lesson.words[sure].gather(1, lesson.weights[sure].argmax(1, keepdim=True))[:, 0]
        wrong = torch.randint(len(lesson.vocabulary), right.shape, generator=generator)
        for words, fits in ((right, 1.0), (wrong, 0.0)):
            x.append((vector * lesson.vocabulary[words]).sum(-1))
            y.append(torch.full((len(vector),), fits))
    model = LogisticRegression(C=100.0).fit(torch.cat(x)[:, None].detach().numpy(), torch.cat(y).numpy())
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def agreement(head: MeaningHead, lesson: Lesson) -> float:
    """Mean cosine between where the head leads inputs and what words say of them."""
    said = consensus(lesson.words, lesson.weights, lesson.vocabulary)
    return float((head.from_pooled(lesson.x.float())["vector"] * said).sum(-1).mean())


def main() -> None:
    data, cache = Path(sys.argv[1]), Path(sys.argv[2])
    for name in sys.argv[3:] or [*MAKERS, "video"]:
        if name == "video":
            clips()
            continue
        lessons_of, front, own = MAKERS[name]
        task = f"{name.replace('_', '-')}-meaning"
        pipeline = Pipeline.build(task, tokenizer=front, head={"hidden": HIDDEN, **own}).eval()
        head: Any = pipeline.head
        lessons = lessons_of(data, cache, pipeline)
        losses = learn_meaning(head, lessons)
        with torch.inference_mode():
            agree = {key: agreement(head, lesson) for key, lesson in lessons.items()}
            slope, offset = calibrate(head, list(lessons.values()))
        pipeline.about = {
            "anchor": load_anchor().spec, "templates": list(TEMPLATES[name]), "fit": [slope, offset],
            "temperature": TEMPERATURE, "default": True, "licence": "Apache-2.0",
            "trained_on": ", ".join(f"{len(lesson.x)} {INPUTS[key]}" for key, lesson in lessons.items()),
            "labels": "none of any data set; words are a teacher's tags or names of generated shapes",
        }  # fmt: skip
        save(pipeline, embedded_folder_in_checkout() / "bundles" / task, torch.float16)
        print(task, {key: round(value, 4) for key, value in losses.items()}, agree, slope, offset, flush=True)


if __name__ == "__main__":
    main()
