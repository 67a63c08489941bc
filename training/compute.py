"""What a training computes on: one device, or several processes that `accelerate launch` or torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from polysense.core.errors import InputError

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16", "no": "no"}  # ours: accelerate's


def start(precision: str = "fp32", device: str | torch.device | None = None) -> Any:
    """A fresh accelerator.

    Args:
        precision: Of what is computed under autocast: a key of `PRECISIONS`. Weights stay in single precision.
        device: "cpu" keeps a GPU out of it; None takes what accelerate finds.

    Raises:
        InputError: There is no such precision, or this device does not compute in it.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    cpu = check_precision(precision, device)
    # Its state is global: a second training in one process may want another precision or device.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=cpu, mixed_precision=PRECISIONS[precision])


def check_precision(precision: str, device: str | torch.device | None) -> bool:
    """Makes sure that a device computes in a precision; returns whether it is the CPU. See `start`."""
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision}", "there is none of this name", f"use {', '.join(PRECISIONS)}")
    cpu = str(device).startswith("cpu") or not torch.cuda.is_available()
    if cpu and precision == "fp16":
        raise InputError("precision fp16", "it needs a GPU", "use fp32, or bf16")
    return cpu


def several() -> bool:
    """Whether this is one of several processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def wait_for_all(device: str) -> None:
    """Goes on when every process has come here."""
    if several():
        start(device=device).wait_for_everyone()


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def own_device(device: str) -> str:
    """The device of this process: of several processes on GPUs each has one of its own."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if several() and device.startswith("cuda") else device


def share_gradients(accelerator: Any, parameters: Sequence[nn.Parameter]) -> None:
    """Means of the gradients of all processes. A parameter that only some of them used counts as 0 in the others.

    By hand and not by DistributedDataParallel: a step may be several backward passes, and which parts it uses (a table,
    the classes of a set) differs from process to process.
    """
    if accelerator.num_processes == 1:
        return
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=accelerator.device)
    kept = [p for p, count in zip(parameters, accelerator.reduce(used, "sum").tolist(), strict=True) if count]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in kept])
    flat = accelerator.reduce(flat, "mean")
    for p, part in zip(kept, flat.split([p.numel() for p in kept]), strict=True):
        p.grad = part.view_as(p).clone()


@torch.no_grad()
def share_state(accelerator: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Gives every process the main one's tensors, in place."""
    from accelerate.utils import broadcast

    if accelerator.num_processes > 1:
        for value in state.values():
            value.copy_(broadcast(value.contiguous()))


def agreed(accelerator: Any, value: Any) -> Any:
    """The main process's value, in all of them: what decides when to stop must not differ by a rounding."""
    from accelerate.utils import broadcast_object_list

    return value if accelerator.num_processes == 1 else broadcast_object_list([value])[0]


@contextmanager
def only_deterministic(wanted: bool) -> Iterator[None]:
    """Lets torch use only operators that give the same bits each time, on GPUs too.

    Raises:
        InputError: What is computed needs an operator that has no such form.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        name = str(error).split(" ")[0]
        raise InputError("--deterministic", f"{name} cannot be computed so on this device", "leave it out") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
