"""Share each step among several processes: each has a part of the batch, and the weights are those of one process with the whole batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather, all_reduce

from changepair.tasks.encoders.encoder import FrozenEncoder


def processes() -> int:
    """Return the number of processes that share each step."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if processes() > 1 else 0


def gathered(own: Tensor) -> Tensor:
    """Join equal parts B... of all processes to NB..., with gradients to each, for losses that are no mean over examples."""
    return torch.cat(list(all_gather(own.contiguous()))) if processes() > 1 else own


class SharedBatchNorm(nn.BatchNorm2d):
    """Normalise by the statistics of the whole batch, like PyTorch's SyncBatchNorm, but also without a GPU."""

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
    """Replace every batch normalisation that learns by one of the whole batch, in place, with the same weights and names."""
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
