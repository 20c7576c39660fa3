"""Take one training step, in parts if memory is short. If a step fails, store its batch and weights for inspection."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather, all_reduce
from torch.optim import Optimizer
from tqdm import tqdm

from changepair.tasks.common import stopping
from changepair.tasks.common.errors import BadInput
from changepair.tasks.common.files import written_beside
from changepair.tasks.encoders.encoder import FrozenEncoder
from changepair.tasks.training.checkpoint import trained_state

Batch = tuple[Tensor, ...]
Loss = Callable[[Callable[..., Any], Batch], Tensor]

FAILED_NAME = "failed.pt"
EXPLODED = 1e4  # factor above the median norm of the last REMEMBERED gradients that counts as exploded
REMEMBERED = 100
PAYS_FROM = 2000  # steps
SHOWN = 8  # examples that an error names


class Step:
    """Compute the loss and gradients of a batch, and update the weights."""

    def __init__(
        self,
        name: str,
        loss: Loss,
        model: nn.Module,
        optimizer: Optimizer,
        accelerator: Accelerator,
        *,
        largest_gradient: float | None,
        folder: Path,
    ) -> None:
        """Set up the step.

        name: the task's name. model: prepared by accelerate. largest_gradient: norm that gradients are clipped to. folder: receives
        FAILED_NAME.
        """
        self.name, self.loss, self.model, self.folder = name, loss, model, folder
        self.optimizer, self.accelerator = optimizer, accelerator
        self.largest = float("inf") if largest_gradient is None else largest_gradient
        self.weights = [tensor for tensor in model.parameters() if tensor.requires_grad]
        self.parts = 1  # number of parts of each batch; doubled when memory is short
        self._norms: deque[float] = deque(maxlen=REMEMBERED)

    def take(self, batch: Batch, number: int, examples: Callable[[], Sequence[str]]) -> tuple[float, bool]:
        """Update the weights from a batch. Return the mean loss over all processes, and whether one of them was asked to stop.

        number: the number of the step, for errors. examples: returns the names of the batch's examples, for errors. Raises BadInput if the
        loss is not a number or the gradients explode; the batch and the unchanged weights are then stored as FAILED_NAME. Raises BadInput
        if one example does not fit into memory.
        """
        own = torch.stack([self._backward(batch), torch.tensor(float(stopping.asked()), device=self.accelerator.device)])
        loss, asked = self.accelerator.gather(own).view(-1, 2).mean(0).tolist()  # equal in all processes, so that they act alike
        wrong = "" if math.isfinite(loss) else "the loss is not a number"
        if self.accelerator.scaler is None:  # a scaler sometimes has infinite gradients and skips those steps
            wrong = wrong or self._exploded(float(self.accelerator.clip_grad_norm_(self.weights, self.largest)))
        elif self.largest < float("inf"):
            self.accelerator.clip_grad_norm_(self.weights, self.largest)
        if wrong:
            self._refuse(wrong, batch, number, examples())
        self.optimizer.step()
        return loss, asked > 0

    def _backward(self, batch: Batch) -> Tensor:
        """Compute the gradients of a batch. Return its loss, the mean over its parts weighted by their size."""
        while True:
            self.optimizer.zero_grad()
            try:
                total = torch.zeros((), device=self.accelerator.device)
                parts = [batch] if self.parts == 1 else zip(*(part.tensor_split(self.parts) for part in batch), strict=True)
                for part in parts:
                    loss = self.loss(self.model, part) * (len(part[0]) / len(batch[0]))
                    self.accelerator.backward(loss)
                    total += loss.detach()
                return total
            except torch.OutOfMemoryError as error:
                self._halve(len(batch[0]), error)

    def _halve(self, size: int, error: torch.OutOfMemoryError) -> None:
        """Split later batches into twice as many parts. Batch normalisation then sees only a part, so the model differs."""
        if self.accelerator.num_processes > 1:  # the others wait for its gradients
            raise BadInput(f"training.{self.name}.batch_size: a batch of {size} does not fit into memory; lower it") from error
        if 2 * self.parts > size:
            raise BadInput(f"training.{self.name}.resolution: one example does not fit into memory; lower it") from error
        self.parts *= 2
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()
        tqdm.write(f"training.{self.name}: a batch of {size} does not fit into memory; splitting into {self.parts} parts", file=sys.stderr)

    def _exploded(self, norm: float) -> str:
        if not math.isfinite(norm):
            return "the gradients are not numbers"
        usual = sorted(self._norms)[len(self._norms) // 2] if len(self._norms) == REMEMBERED else 0.0
        if usual and norm > EXPLODED * usual:
            return f"the gradients exploded (norm {norm:.3g}, median {usual:.3g})"
        self._norms.append(norm)
        return ""

    def _refuse(self, wrong: str, batch: Batch, number: int, examples: Sequence[str]) -> None:
        file = self.folder / FAILED_NAME
        if self.accelerator.is_main_process:
            state = {"step": number, "wrong": wrong, "examples": list(examples), "batch": [part.cpu() for part in batch]}
            network = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            with written_beside(file) as partial:
                torch.save({**state, "trained": {name: value.cpu() for name, value in trained_state(network).items()}}, partial)
        named = ", ".join(examples[:SHOWN]) + (f" and {len(examples) - SHOWN} more" if len(examples) > SHOWN else "")
        raise BadInput(
            f"training.{self.name}: step {number}: {wrong}; lower learning_rate, or set largest_gradient. Its batch ({named}) and the "
            f"weights are in {file}"
        )


def pays(accelerator: Accelerator, steps: int) -> bool:
    """Tell whether compiling saves more time than it takes.

    On an H200, compiling took 65 s. It saved 76 of the 171 ms of a MetaUAS step with EfficientNet-B4 and 128 pairs of 256x256
    (docs/pages/explanation/performance.md). On two CPU cores, a step took 0.87 to 1.18 times as long.
    """
    return accelerator.device.type == "cuda" and accelerator.num_processes == 1 and steps >= PAYS_FROM


def compiled(network: nn.Module) -> nn.Module:
    """Compile a network that accelerate has prepared, and its frozen encoders separately. The weights are shared."""
    for part in network.modules():
        if isinstance(part, FrozenEncoder):
            part.compile_network()
    return cast(nn.Module, torch.compile(network))


def processes() -> int:
    """Return the number of processes that share each step."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def gathered(own: Tensor) -> Tensor:
    """Join the parts B... of N processes to NB..., with gradients. Needed for losses that are not a mean over examples."""
    return torch.cat(list(all_gather(own.contiguous()))) if processes() > 1 else own


class SharedBatchNorm(nn.BatchNorm2d):
    """Normalise by the statistics of the whole batch, as PyTorch's SyncBatchNorm does, but also on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or processes() == 1:
            return super().forward(input)
        dims, of = (0, 2, 3), float(processes())
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        mean = all_reduce(wide.mean(dims)) / of
        centred = wide - mean.view(1, -1, 1, 1)
        variance = all_reduce(centred.square().mean(dims)) / of
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
            assert self.momentum is not None
            count = of * input.numel() / input.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), self.momentum)
        normal = centred * torch.rsqrt(variance + self.eps).view(1, -1, 1, 1)
        if self.affine:
            normal = normal * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return normal.to(input.dtype)


def share_statistics(model: nn.Module) -> None:
    """Replace every trained batch normalisation by SharedBatchNorm, in place, with the same weights and names."""
    for name, child in model.named_children():
        if isinstance(child, FrozenEncoder):
            continue
        if type(child) is nn.BatchNorm2d:
            own = SharedBatchNorm(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            own.load_state_dict(child.state_dict())
            own.train(child.training)
            setattr(model, name, own.to(next(iter(child.state_dict().values())).device))
        else:
            share_statistics(child)
