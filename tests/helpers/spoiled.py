"""A net whose gradients or logits are none, in the ways in which nets have it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Spoil = Callable[[Tensor], Tensor]
PART = torch.arange(36).view(6, 6) % 3 == 0


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, spoil: Spoil) -> Tensor:
        ctx.spoil = spoil
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (x,) = ctx.saved_tensors
        marked = (x[:, :1, :1, :1] > 0.5).expand_as(gradient)
        return torch.where(marked, ctx.spoil(gradient), gradient), None


class Spoiled(nn.Module):
    """A net for images [N, 1, 6, 6]; `spoil` changes the gradient of those whose first pixel is above a half."""

    def __init__(self, net: nn.Module, spoil: Spoil):
        super().__init__()
        self.net, self.spoil = net, spoil

    def forward(self, x: Tensor) -> Tensor:
        return self.net(_Backward.apply(x, self.spoil))


def in_part(value: Callable[[Tensor], Tensor]) -> Spoil:
    """Every third pixel's gradient by another, made of the whole gradient."""
    return lambda gradient: torch.where(PART, value(gradient), gradient)


def largest_of_rest(gradient: Tensor) -> Tensor:
    """The signs of the gradient, as large as the largest entry that `in_part` leaves alone."""
    rest = gradient.masked_fill(PART, 0).abs().amax((1, 2, 3), keepdim=True)
    return gradient.sign() * rest


def nan(gradient: Tensor) -> Tensor:
    return torch.full_like(gradient, torch.nan)


def infinite(gradient: Tensor) -> Tensor:
    return gradient.sign() * torch.inf


def zero(gradient: Tensor) -> Tensor:
    return torch.zeros_like(gradient)


class NanAbove(nn.Module):
    """A net whose logits are `value` for classes `where` (all by default) if the first pixel is above `limit`."""

    def __init__(self, net: nn.Module, limit: float, value: float = torch.nan, where: slice = slice(None)):
        super().__init__()
        self.net, self.limit, self.value, self.where = net, limit, value, where

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        spoiled = logits.clone()
        spoiled[:, self.where] = self.value
        return torch.where(x[:, :1, 0, 0] > self.limit, spoiled, logits)
