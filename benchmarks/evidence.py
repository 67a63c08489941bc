"""Does one encoder help every sense? `python benchmarks/evidence.py DATA OUT [--rows …] [--arms …]`, one table.

Each row of the results table under five encoders, all else equal (tokens, head, rows of data, budget), three seeds:

- joint: the shared encoder, pretrained on all senses, frozen (`--encoder-joint`);
- images: the same encoder pretrained on images alone, frozen (`--encoder-images`);
- random: the same architecture with PyTorch's random initial weights, frozen;
- none: no encoder, the head reads what the tokenizer gives;
- tuned: the joint one after learning the row's task for a fixed number of tokens (`--tuning-tokens`).

Tokens are computed once a row and shared by all arms. Tokenizers are the package's own (clouds, series and tables have
seeded random layers where none fit). They were trained together with the joint encoder, which favours it: an encoder
pretrained on images alone has, for images and clips, tokenizers of its own if `--tokenizers-images` gives them. The
head is linear, on the pooled features of the task's usual head, solved by least squares; its strength by
cross-validation inside the train part. The tuned encoder learns with the same loss under the joint arm's head, which
is then solved anew.
Subsampled: figures compare the arms and are below those of the results table. A seed draws four fifths of the cached
train examples, and the random weights. OUT/evidence.jsonl keeps what is finished; running again goes on.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence_tokens import Part, Task, build, fingerprint, pooled, score, solve, to, tokenize
from jaxtyping import Int
from table import shown
from table_rows import ROWS
from torch import Tensor, nn

from polysense.backbone.encoder import Encoder
from polysense.backbone.weights import embedded_folder, load_encoder
from polysense.core.types import Tokens
from polysense.tasks import TASKS

ARMS = ("joint", "images", "random", "none", "tuned")
SEEDS = (0, 1, 2)
DRAWN = 0.8  # share of the cached train examples that a seed learns from
LR = 3e-4  # of the tuned arm
LEFT_OUT = (
    "cifar",
    "speed",
    "bccd",
    "camvid",
    "sst2",
    "ag_news",
)  # as cifar_5k once subsampled; no score; heads on pixels; texts
MOST = (1000, 1000)  # examples of train and test; a run of a forecaster: windows
SIZES = {"cifar_5k": (1200, 1000), "caltech101": (1500, 807), "tiny200": (1500, 1000), "miracl": (300, 300),
         "adult": (1500, 1000), "etth1": (250, 150), "exchange": (200, 150), "etth1_unfitted": (400, 100),
         "m4_hourly": (400, 400), "m4_weekly": (400, 400)}  # fmt: skip
ANY_SERIES = {"context": 192, "tokenizer_options": {"stride": 16}}  # as the bundle reads histories
OPTIONS: dict[str, dict[str, Any]] = {
    "etth1_unfitted": {**ANY_SERIES, "borders": (0.7, 0.15, 0.15), "time": None},  # many series: each finds its own
    "m4_hourly": {**ANY_SERIES, "horizon": 48},
    "m4_weekly": {**ANY_SERIES, "horizon": 13},
}
RUNS = {"adult": 1}  # runs of a row that are taken, from the first; elsewhere all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", nargs="*", default=[name for name in ROWS if name not in LEFT_OUT])
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    parser.add_argument("--encoder-joint", default="embedded", metavar="SPEC")
    parser.add_argument("--encoder-images", metavar="SPEC", help="without it the arm is left out")
    parser.add_argument("--tokenizers", type=Path, default=embedded_folder() / "tokenizers", metavar="DIR")
    parser.add_argument("--tokenizers-images", type=Path, metavar="DIR")
    parser.add_argument("--tuning-tokens", type=int, default=16_000, help="that the tuned arm sees, a row and seed")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if unknown := set(args.rows) - (ROWS.keys() - set(LEFT_OUT)):
        parser.error(f"no row {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "evidence.jsonl"
    bench = Bench(args)
    for name in args.rows:
        for line in bench.lines(name, finished(file)):
            print(json.dumps(line), flush=True)
            with file.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
    print(markdown([json.loads(line) for line in file.read_text().splitlines()]))


def finished(file: Path) -> set[tuple[Any, ...]]:
    lines = file.read_text().splitlines() if file.exists() else []
    return {key_of(json.loads(line)) for line in lines}


def key_of(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("row", "arm", "seed", "encoder", "tokenizer", "tuning_tokens"))


class Bench:
    """The encoders of all arms, and the measuring of a row under each."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.joint = load_encoder(args.encoder_joint).to(args.device)
        self.images = load_encoder(args.encoder_images).to(args.device) if args.encoder_images else None

    def encoder(self, arm: str, seed: int, layers: tuple[int, ...]) -> Encoder:
        if arm == "images":
            assert self.images is not None
            return self.images
        if arm == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return Encoder(self.joint.config).freeze().to(self.args.device)
        if arm == "none":  # blocks that add nothing, as many as the head's hidden layers need
            depth = max((abs(layer) for layer in layers), default=0)
            plain = replace(self.joint.config, depth=depth, pre_norm=False, final_norm=False, layer_scale=False)
            return Encoder(plain).start_as_identity().freeze().to(self.args.device)
        return self.joint

    def lines(self, name: str, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
        """The unfinished lines of a row; tokens are computed when the first of them needs them."""
        row, runs, tasks = ROWS[name], self.runs(name), {}
        for arm in self.args.arms:
            if arm == "images" and self.images is None:
                continue
            folder = self.args.tokenizers
            own = self.args.tokenizers_images
            if arm == "images" and own and (own / f"{TASKS[row.task].modality}.safetensors").exists():
                folder = own
            fronts = [build(run, run.task or row.task, options, self.args.encoder_joint, folder)
                      for run, options in runs]  # fmt: skip
            tokens = hashlib.sha256("".join(fingerprint(p.tokenizer) for p, _ in fronts).encode()).hexdigest()
            for seed in SEEDS:
                started = time.process_time()
                encoder = self.encoder(arm, seed, fronts[0][0].head.layers)
                line = {"row": name, "arm": arm, "seed": seed, "encoder": encoder.fingerprint(), "tokenizer": tokens,
                        "tuning_tokens": self.args.tuning_tokens if arm == "tuned" else 0}  # fmt: skip
                if key_of(line) in done:
                    continue
                if folder not in tasks:
                    tasks[folder] = [tokenize(run, *front, SIZES.get(name, MOST), row.metrics[0])
                                      for (run, _), front in zip(runs, fronts)]  # fmt: skip
                values = [self.value(task, arm, seed, encoder, len(runs)) for task in tasks[folder]]
                yield {**line, "value": float(np.mean(values)), "values": values, "metric": row.metrics[0],
                       "larger_is_better": row.larger_is_better, "train": len(tasks[folder][0].train),
                       "test": len(tasks[folder][0].test), "cpu_seconds": round(time.process_time() - started, 1),
                       "date": time.strftime("%Y-%m-%d")}  # fmt: skip

    def runs(self, name: str) -> list[tuple[Any, dict[str, Any]]]:
        row = ROWS[name]
        runs = row.runs(self.args.data, self.args.out / "views")[: RUNS.get(name)]
        return [(run, {**row.options, **run.options, **OPTIONS.get(name, {})}) for run in runs]

    def value(self, task: Task, arm: str, seed: int, encoder: Encoder, share: int) -> float:
        """The test score of a seed's draw."""
        key = "joint" if arm == "tuned" else arm
        if key == "random" or key not in task.cache:  # random weights are another encoder in each seed
            task.cache[key] = (pooled(encoder, task, task.train, self.args.device),
                               pooled(encoder, task, task.test, self.args.device))  # fmt: skip
        train, test = task.cache[key]
        rows = draw(task.train, seed)
        linear = solve(task, train, rows)
        if arm != "tuned":
            with torch.inference_mode():
                return score(task, linear(test), task.test)
        tuned = tune(encoder, linear, task, rows, seed, self.args.tuning_tokens // share, self.args.device)
        train, test = (pooled(tuned, task, part, self.args.device) for part in (task.train, task.test))
        with torch.inference_mode():
            return score(task, solve(task, train, rows)(test), task.test)


def draw(part: Part, seed: int) -> Int[Tensor, " r"]:
    """Sequences of the train examples that a seed learns from."""
    chosen = np.random.default_rng(seed).permutation(len(part))[: round(DRAWN * len(part))]
    return torch.isin(part.owner, torch.from_numpy(chosen)).nonzero().flatten()


def tune(
    encoder: Encoder, linear: nn.Linear, task: Task, rows: Int[Tensor, " r"], seed: int, budget: int, device: str
) -> Encoder:
    """A copy of the encoder that learns on cached tokens, under a solved head, until `budget` tokens were seen.

    The head stands still: steps of Adam that suit the encoder are as large as its weights and undo the solution.
    """
    encoder, linear = copy.deepcopy(encoder).requires_grad_(True).train(), linear.requires_grad_(False).to(device)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=LR, weight_decay=0.05)
    part, rng, seen = task.train, np.random.default_rng(seed), 0
    sizes = [len(tokens.x) for tokens in part.batches]
    starts = np.cumsum([0, *sizes])
    learnt = torch.zeros(len(part.owner), dtype=torch.bool)
    learnt[rows] = True
    learnt &= part.y.isfinite().all(1)
    while seen < budget:
        for i in rng.permutation(len(sizes)):
            mine = learnt[starts[i] : starts[i + 1]].nonzero().flatten()
            if not len(mine) or seen >= budget:
                continue
            optimiser.param_groups[0]["lr"] = LR * 0.5 * (1 + np.cos(np.pi * seen / budget))
            tokens, place = part.batches[i], mine + int(starts[i])
            batch = some(tokens, mine)
            out = linear(task.pool(encoder(to(batch, device), layers=task.layers)))
            error = (out - part.y[place].to(device)).square().mean(1)
            loss = (error * part.weight[place].to(device)).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimiser.step()
            seen += batch.x.shape[0] * batch.x.shape[1]
    return encoder.freeze()


def some(tokens: Tokens, rows: Int[Tensor, " r"]) -> Tokens:
    return Tokens(tokens.x[rows], None if tokens.mask is None else tokens.mask[rows], tokens.pos[rows], tokens.grid)


def markdown(lines: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds, of the latest line of each row, arm and seed."""
    latest = {(line["row"], line["arm"], line["seed"]): line for line in lines}
    arms = [arm for arm in ARMS if any(key[1] == arm for key in latest)]
    table = [f"| row | metric | train / test | {' | '.join(arms)} |", "|---" * (3 + len(arms)) + "|"]
    for name in ROWS:
        cells = []
        for arm in arms:
            values = [latest[name, arm, seed]["value"] for seed in SEEDS if (name, arm, seed) in latest]
            spread = f" ± {shown(float(np.std(values, ddof=1)))}" if len(values) > 1 else ""
            cells.append(shown(float(np.mean(values))) + spread if values else "")
        if any(cells):
            line = next(line for key, line in latest.items() if key[0] == name)
            head = f"| {name} | {line['metric']}{'' if line['larger_is_better'] else ' ↓'} "
            table.append(f"{head}| {line['train']} / {line['test']} | {' | '.join(cells)} |")
    return "\n".join(table)


if __name__ == "__main__":
    main()
