"""What the tests of whole pipelines share: a tiny encoder, generated inputs of every modality, small configurations."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from polysense.backbone.encoder import Encoder, EncoderConfig
from polysense.backbone.weights import save_encoder
from polysense.core.predictions import Boxes, Embedding, Labels, Mask, Segments, Series, Values
from polysense.core.types import Sample
from polysense.data.dataset import BoxTarget
from polysense.data.segments import SegmentTarget
from polysense.pipeline import Pipeline
from polysense.tasks import TASKS

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before any test imports onnxruntime
os.environ["POLYSENSE_CACHE_GB"] = "0"  # tests leave no features in the user's cache
# The tests' tensors are tiny: a second thread costs more in waiting than it computes, most of all on a busy machine.
torch.set_num_threads(1)

WIDTH = 48
CLASSES = ("a", "b", "c")
PATCHES = {"form": "patch", "size": 64}  # of an image tokenizer: learns colours from random weights, fast
HORIZON = 8
WORDS = ("the", "small", "dog", "barks", "at", "a", "passing", "train", "and", "nobody", "minds", "Überraschung", "!")
TOKENIZERS: dict[str, dict[str, Any]] = {
    "image": {"size": 64},
    "video": {"size": 64, "frames": 2},
    "audio": {"window": 1.0},
    "point_cloud": {"points": 128, "groups": 8, "neighbours": 8},
    "time_series": {"context": 64},
    "tabular": {"bins": 4},
    "text": {"window": 16},
}
HEADS: dict[str, dict[str, Any]] = {
    "classification": {"classes": CLASSES},
    "multilabel": {"classes": CLASSES, "multi_label": True},
    "regression": {"names": ("p", "q"), "mean": (3.0, -1.0), "std": (2.0, 0.5), "hidden": 16},
    "embedding": {},
    "meaning": {"dim": 24},
    "naming": {"classes": CLASSES, "dim": 24},
    "segmentation": {"classes": CLASSES, "channels": 16},
    "detection": {"classes": CLASSES, "channels": 16, "depth": 1},
    "panoptic": {"classes": CLASSES, "things": CLASSES[:1], "channels": 16, "queries": 5, "reads": 3, "heads": 2},
    "set_detection": {"classes": CLASSES, "channels": 16, "depth": 1, "queries": 40, "decoder_layers": 1},
    "forecasting": {"horizon": HORIZON, "tokens": 7},
}
HEADS["instances"] = HEADS["panoptic"] | {"answer": "instance", "open_world": True, "decoder": "kmeans"}
ANSWERS = {"classification": Labels, "multilabel": Labels, "regression": Values, "embedding": Embedding,
           "meaning": Embedding, "segmentation": Mask, "detection": Boxes, "panoptic": Segments,
           "instances": Segments, "forecasting": Series}  # fmt: skip


def tiny_encoder() -> Encoder:
    """Random and far from the identity, so that attention to padding would show."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        encoder = Encoder(EncoderConfig(width=WIDTH, depth=2, heads=3))
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, 0, 0.15) if parameter.ndim > 1 else None
    return encoder.freeze()


def make_table(rows: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"size": rng.normal(10, 3, rows), "count": rng.integers(0, 9, rows).astype(float),
                          "kind": rng.choice(["red", "green"], rows)})  # fmt: skip
    frame.loc[rows - 1, "size"] = np.nan
    return frame


def make_input(modality: str, number: int = 0) -> Any:
    """An in-memory input; every number gives another one, of another size."""
    rng = np.random.default_rng(number)
    grow = number % 4
    if modality == "image":
        return Image.fromarray(rng.integers(0, 256, (50 + 40 * grow, 120 - 20 * grow, 3), np.uint8))
    if modality == "video":
        return rng.integers(0, 256, (1 + 2 * grow, 40 + 20 * grow, 60, 3), np.uint8)
    if modality == "audio":
        return rng.normal(0, 0.1, 4000 + 9000 * grow).astype(np.float32), 16_000
    if modality == "point_cloud":
        return rng.normal(0, 1 + grow, (5 + 90 * grow, 3))
    if modality == "time_series":
        count = 20 + 30 * grow
        times = pd.date_range("2024-01-01", periods=count, freq="h")
        values = rng.normal(grow, 2, (count, 2)).cumsum(0)
        return pd.DataFrame({"time": times, "load": values[:, 0], "heat": values[:, 1]})
    if modality == "text":
        return " ".join(rng.choice(WORDS, 4 + 9 * grow))
    return make_table(3, number).to_dict("records")[number % 3]


def make_target(kind: str, meta: dict[str, Any]) -> Any:
    """A target that suits an input with this meta."""
    rng = np.random.default_rng(0)
    if kind == "segmentation":
        shape = meta["size"] if "size" in meta else len(meta["xyz"])
        return rng.integers(0, len(CLASSES), shape)
    if kind in ("panoptic", "instances"):
        index = rng.integers(0, 3, (4, 4)).repeat(-(-meta["size"][0] // 4), 0).repeat(-(-meta["size"][1] // 4), 1)
        return SegmentTarget(index[: meta["size"][0], : meta["size"][1]], ["a", "b", "a"])
    if kind == "detection":
        height, width = meta["size"]
        return BoxTarget([[0.1 * width, 0.2 * height, 0.6 * width, 0.9 * height]], ["b"])
    simple = {"classification": "b", "multilabel": ["a", "c"], "regression": {"p": 4.0, "q": -2.0},
              "forecasting": rng.normal(size=HORIZON)}  # fmt: skip
    return simple[kind]


def build_tiny(task: str, encoder: Encoder | str, **over: Any) -> Pipeline:
    """An untrained pipeline of the task on a tiny encoder; `tokenizer` and `head` add to the usual small options."""
    what = TASKS[task]
    own = what.head in ("naming", "set_detection")  # heads that share their kind with another one
    front, head = dict(TOKENIZERS[what.modality]), dict(HEADS[what.head if own else what.kind])
    if what.kind == "forecasting":
        front |= {"fixed_context": True, "center": "last"}
    sources = [make_table(40)] if what.modality == "tabular" else []
    return Pipeline.build(task, encoder=encoder, tokenizer=front | over.pop("tokenizer", {}),
                          head=head | over.pop("head", {}), sources=sources, **over).eval()  # fmt: skip


def numbers_of(prediction: Any) -> np.ndarray:
    """What a prediction says, as one vector to compare."""
    if isinstance(prediction, Labels):
        return np.array([score for _, score in sorted(zip(prediction.names, prediction.scores, strict=True))])
    if isinstance(prediction, Values):
        return np.array(list(prediction.values.values()))
    if isinstance(prediction, Embedding):
        return prediction.vector
    if isinstance(prediction, Boxes):
        return np.concatenate([prediction.scores[:, None], prediction.xyxy], 1)[:5].ravel()
    if isinstance(prediction, Mask):
        return np.append(prediction.index.ravel(), prediction.confidence)
    if isinstance(prediction, Segments):
        return np.concatenate([prediction.index.ravel(), prediction.scores])
    return np.concatenate([prediction.mean.ravel(), *(values.ravel() for values in prediction.quantiles.values())])


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture(scope="session")
def encoder_spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny encoder as a file, so that bundles find it again."""
    path = tmp_path_factory.mktemp("encoder") / "tiny.safetensors"
    save_encoder(tiny_encoder(), path)
    return f"file:{path}"


@pytest.fixture(scope="session")
def build(encoder: Encoder) -> Callable[..., Pipeline]:
    """build(task, tokenizer=…, head=…) -> a tiny pipeline."""
    return lambda task, encoder=encoder, **over: build_tiny(task, encoder, **over)


@pytest.fixture(scope="session")
def make() -> Callable[..., Any]:
    """make(modality, number) -> an input."""
    return make_input


@pytest.fixture(scope="session")
def target_for() -> Callable[..., Any]:
    return make_target


@pytest.fixture(scope="session")
def numbers() -> Callable[[Any], np.ndarray]:
    return numbers_of


@pytest.fixture(scope="session")
def table() -> Callable[..., pd.DataFrame]:
    return make_table


@pytest.fixture(scope="session")
def answers() -> dict[str, type]:
    return ANSWERS


@pytest.fixture
def pretend(build: Callable[..., Pipeline], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """pretend(answer) -> a pipeline that forecasts `answer(history (t, c), h)` in a band of two on either side, and the
    histories that it is given."""
    band = {0.1: -2.0, 0.5: 0.0, 0.9: 2.0}

    def make(answer: Callable[[np.ndarray, int], np.ndarray]) -> tuple[Pipeline, list[np.ndarray]]:
        pipeline = build("forecasting", head={"quantiles": tuple(band)})
        seen: list[np.ndarray] = []

        def predict(samples: Sequence[Sequence[Sample]], batch_size: int) -> list[Series]:
            answers = []
            for parts in samples:
                history = np.concatenate([part.meta["history"] for part in parts], 1)
                seen.append(history)
                mean = answer(history, pipeline.head.horizon)
                names = [part.meta["names"][0] for part in parts]
                answers.append(Series(mean, {q: mean + away for q, away in band.items()}, [], names))
            return answers

        monkeypatch.setattr(pipeline, "predict_sequences", predict)
        return pipeline, seen

    return make


@pytest.fixture
def image_folders(tmp_path: Path) -> Path:
    """Three classes of noisy pictures that differ in colour, 12 each."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(("blue", "green", "red")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for k in range(12):
            pixels = rng.integers(0, 120, (40 + 4 * k, 48, 3))
            pixels[..., 2 - i] += 120
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pictures" / name / f"{k}.png")
    return tmp_path / "pictures"


@pytest.fixture
def quick(encoder_spec, tmp_path):
    """fit(task, data, …) with few epochs on the tiny encoder -> result, bundle."""

    import polysense
    from polysense.training.fit import fit

    def run(task, data, **over):
        options = {"encoder": encoder_spec, "epochs": 2, "progress": False, **over}
        result = fit(task, data, options.pop("out", tmp_path / "bundle"), **options)
        return result, polysense.load(result.path)

    return run


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """Features are kept in a folder of the test's own."""
    monkeypatch.setenv("POLYSENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("POLYSENSE_CACHE_GB", "1")


@pytest.fixture
def pictures_of(image_folders, build):
    """make(**pipeline options) -> a pipeline and examples of pictures, which share one cache on disk."""
    from polysense.training.feature_cache import FeatureCache
    from polysense.training.sources import open_sources

    sources = open_sources(TASKS["image-classification"], image_folders)

    def make(lasting=True, tokenizer=PATCHES, **over):
        pipeline = build("image-classification", head=sources.head_options(), tokenizer=tokenizer, **over)
        pictures = sources.examples(pipeline.tokenizer, "")
        pictures.features = FeatureCache({"task": "image-classification", "data": "pictures"}, lasting)
        return pipeline, pictures

    return make


@pytest.fixture(scope="session")
def sure():
    """sure(metrics) -> those that do not hang on ties, as ranks of untrained answers do."""
    return lambda metrics: {k: v for k, v in metrics.items() if k in ("log_loss", "mse", "rmse", "mae")}


def png(width: int = 40, height: int = 30) -> bytes:
    """A picture of noise."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def file_data(path: str, **more: Any) -> dict[str, Any]:
    """What an upload is called by in a call."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


class Visited:
    """A running demo, asked as anybody can: over HTTP."""

    noise = staticmethod(png)
    data = staticmethod(file_data)

    def __init__(self, address: str, folder: Path, log: Path) -> None:
        self.address, self.uploads, self.log = address, folder, log
        self.api = f"{address}gradio_api"
        import httpx

        self.http = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))

    def upload(self, name: str, content: bytes) -> str:
        answer = self.http.post(f"{self.api}/upload", files={"files": (name, content)})
        assert answer.status_code == 200, answer.text
        return str(answer.json()[0])

    def __call__(self, endpoint: str, values: list[Any], session: str | None = None) -> tuple[Any, str]:
        """The answer, or None and the sentence."""
        session = session or os.urandom(8).hex()
        answer = self.http.post(f"{self.api}/call/{endpoint}", json={"data": values, "session_hash": session})
        assert answer.status_code == 200, answer.text
        told = self.http.get(f"{self.api}/call/{endpoint}/{answer.json()['event_id']}").text
        event, data = re.findall(r"event: (\w+)\ndata: (.*)", told)[-1]
        return (json.loads(data), "") if event == "complete" else (None, str(json.loads(data)["error"]))


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visited]:
    """A demo for files of 2 MB at most."""
    pytest.importorskip("gradio")
    from polysense.apps.demo.app import served
    from polysense.apps.demo.limits import Options

    log = tmp_path_factory.mktemp("log") / "calls.jsonl"
    with served(Options(max_mb=2, log=str(log))) as (blocks, address):
        yield Visited(address, Path(blocks.app.uploaded_file_dir), log)
