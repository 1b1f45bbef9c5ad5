"""Square Attack (Andriushchenko, Croce, Flammarion and Hein, ECCV 2020): random search that needs only logits.

Each query changes square windows of the best image so far and keeps the change where the margin
z_y - max_{j != y} z_j falls. An image is done once its margin is not positive. The windows shrink as the search
goes on: they have p(query) of the image's area, p being 0.8 at first and halved seven times.

Linf: starts from vertical stripes of ±eps. A query adds ±2 eps, one sign for a channel, in one window, and cuts to
the ball, where every pixel is at its border.

L2: starts from tiles, and gives to one window the mass (sum of squares) of another, which is emptied, and its part
of what is left of eps². Tiles and windows have the shape of two hills of opposite sign (`template`).

Windows and Linf signs of a query are the same for all images, functions of seed and query alone; the signs of the
start and of L2 are functions of seed, query and image row. So an image's search knows nothing of its company.
"""

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from fastarat_kernels import philox
from fastarat_kernels.pgd_step.ball import norms
from fastarat_kernels.philox import Stream
from torch import Tensor

from fastarat.attacks.attack import Attack, Conditions, Cost, Found
from fastarat.attacks.objectives import TINY
from fastarat.attacks.pgd import Logits
from fastarat.common.errors import UserError
from fastarat.config.attack import Norm
from fastarat.models.predictions import are_right, margins

# p is halved after each of these queries.
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000)
# After every BLOCK queries the host waits to learn which images are done. That costs a GPU less than a query, and an
# image stays at most BLOCK of 5000 queries longer than it must. L2's signs are drawn for a block at once.
BLOCK = 20


class Best(NamedTuple):
    """The state of a search, all tensors but `query` of one row a point; images [B, C, H, W]."""

    x_adv: Tensor
    """the best so far"""
    margin: Tensor
    """its, [B]"""
    broken: Tensor
    """whether it is misclassified, bool [B]"""
    y: Tensor
    """int64 [B]"""
    query: Tensor
    """the number of the next one, int64 []"""
    first: Tensor
    """Linf: the lowest image of the ball and [0, 1]; L2: the clean image"""
    second: Tensor
    """Linf: the highest image; L2: signs of this block's queries, [B, BLOCK, C]"""


def fraction(query: int) -> float:
    """p, the part of an image's area that the window of this query has."""
    return 0.8 / 2 ** bisect_left(HALVED_AFTER, query)


def side(query: int, height: int, width: int, norm: Norm) -> int:
    """The side of this query's windows in pixels; for L2 an odd one, 3 or more where the image is."""
    wanted, shorter = round((fraction(query) * height * width) ** 0.5), min(height, width)
    if norm == "linf":
        return min(max(wanted, 1), shorter)
    return min(max(wanted, 3) | 1, shorter - (shorter + 1) % 2)


def template(side: int) -> Tensor:
    """L2's window, float64 [side, side] of norm 1: a hill above an upside-down one, half of the mass each.

    A hill of h x w pixels rises in square rings round pixel (h // 2, w // 2): ring r = 0, 1, … is worth
    sum_{k = r}^{n} 1 / (k + 1)², where n = max(h, w) // 2 is the last ring.
    """

    def hill(height: int) -> Tensor:
        down, across = (torch.arange(n) - n // 2 for n in (height, side))
        rings = torch.maximum(down.abs()[:, None], across.abs())
        rises = torch.arange(1, max(height, side) // 2 + 2, dtype=torch.float64) ** -2
        values = rises.flip(0).cumsum(0).flip(0)[rings]
        return values / values.norm()

    halves = torch.cat([hill(side // 2), -hill(side - side // 2)])
    return halves / halves.norm()


def _signs(words: Tensor) -> Tensor:
    """±1 (int64) from each uint32 word."""
    return (words >> 30 & 2) - 1


class _Search:
    """What the queries have in common for all images like `x`, drawn at once: afterwards the host never waits."""

    def __init__(self, x: Tensor, norm: Norm, eps: float, seed: int, queries: int):
        self.eps, self.seed = eps, seed
        channels, height, width = x.shape[1:]
        self.sides = [side(query, height, width, norm) for query in range(queries)]
        words = philox.words(seed, Stream.SQUARE_QUERY, 0, torch.arange(queries, device=x.device), 4 + channels)
        # A corner is uniform in [0, length - side), which leaves out the last place; and 0 if that is empty.
        sides = torch.tensor(self.sides, dtype=torch.int64)
        room = torch.tensor([height, width]) - sides[:, None]
        room = room.clamp_min(1).to(x.device)[:, None]
        self.corners = words[:, :4].view(queries, 2, 2) * room >> 32
        """int64 [queries, 2, 2]: of two windows, (row, column)"""
        self.signs = _signs(words[:, 4:])
        """int64 [queries, C]"""
        self.lengths = sides.to(x.device)
        """the sides again: int64 [queries]"""


class _Linf(_Search):
    def start(self, x: Tensor, rows: Tensor) -> Tensor:
        """`x` [B, C, H, W] with ±eps on each column of each channel."""
        _, channels, _, width = x.shape
        stripes = _signs(philox.words(self.seed, Stream.SQUARE_START, 0, rows, channels * width))
        return (x + self.eps * stripes.view(-1, channels, 1, width).to(x.dtype)).clamp(0, 1)

    def given(self, x: Tensor, rows: Tensor, block: range) -> tuple[Tensor, Tensor]:
        """The lowest and the highest image, like `x` [B, C, H, W], of the ball and [0, 1]: for every block the same."""
        return (x - self.eps).clamp_min(0), (x + self.eps).clamp_max(1)

    def propose(self, side: int, best: Best) -> Tensor:
        """Images to try in any query, like `best.x_adv` [B, C, H, W]; `side` is 0: that of the windows is looked up."""
        signs, corner, length = (_at(best.query, table) for table in (self.signs, self.corners, self.lengths))
        step = 2 * self.eps * signs.to(best.x_adv.dtype)
        return step_window(best.x_adv, step, corner[0], length).clamp_(best.first, best.second)


class _L2(_Search):
    def __init__(self, x: Tensor, norm: Norm, eps: float, seed: int, queries: int):
        if min(x.shape[2:]) < 5:
            raise UserError(
                f"square in L2 needs images of 5 x 5 pixels or more, not {x.shape[2]} x {x.shape[3]}: leave it out"
            )
        super().__init__(x, norm, eps, seed, queries)
        self.templates = {length: template(length).to(x) for length in set(self.sides)}
        self.tile = template(min(x.shape[2:]) // 5).to(x)

    def start(self, x: Tensor, rows: Tensor) -> Tensor:
        """`x` [B, C, H, W] with a shift of norm eps: tiles, whose signs depend on image and channel."""
        channels, *lengths = x.shape[1:]
        size = len(self.tile)
        margin = (min(lengths) - 5 * size) // 2
        down, across = ((length - margin) // size for length in lengths)
        # Step 0 of this stream are the queries.
        turned = _signs(philox.words(self.seed, Stream.SQUARE_QUERY, 1, rows.new_zeros(1), down * across)) > 0
        tiles = torch.where(turned.view(down, across, 1, 1), self.tile.T, self.tile)
        signs = _signs(philox.words(self.seed, Stream.SQUARE_START, 0, rows, channels * down * across))
        shift = signs.view(-1, channels, down, across, 1, 1) * tiles
        shift = shift.transpose(3, 4).reshape(-1, channels, down * size, across * size)
        below, right = (length - margin - n * size for length, n in zip(lengths, (down, across), strict=True))
        return self._around(x, F.pad(shift, (margin, right, margin, below)))

    def given(self, x: Tensor, rows: Tensor, block: range) -> tuple[Tensor, Tensor]:
        """`x` [B, C, H, W] as it is, and the signs of this block's queries, [B, BLOCK, C] of its dtype.

        `rows`: the images' places in the evaluated set, int64 [B].
        """
        words = philox.words(self.seed, Stream.SQUARE_SIGN, block.start, rows, x.shape[1] * BLOCK)
        return x, _signs(words).view(-1, BLOCK, x.shape[1]).to(x.dtype)

    def propose(self, side: int, best: Best) -> Tensor:
        """Images to try in a query whose windows have this side in pixels, like `best.x_adv` [B, C, H, W]."""
        shape, x = self.templates[side], best.first
        turned, corners = _at(best.query, self.signs), _at(best.query, self.corners)
        signs = best.second.index_select(1, (best.query % BLOCK).view(1)).view(-1, x.shape[1], 1, 1)
        shape = signs * torch.where(turned[0] > 0, shape.T, shape)
        return self._around(x, move_mass(best.x_adv - x, shape, corners, self.eps))

    def _around(self, x: Tensor, shift: Tensor) -> Tensor:
        # In `shift`'s own memory: on a CPU fresh memory costs more than the arithmetic.
        return shift.mul_(self.eps / norms(shift).clamp_min(TINY)).add_(x).clamp_(0, 1)


def _at(query: Tensor, table: Tensor) -> Tensor:
    """A query's row; `table[query]` would make the host wait for the number."""
    return table.index_select(0, query.view(1)).squeeze(0)


def step_window(images: Tensor, step: Tensor, corner: Tensor, side: int | Tensor) -> Tensor:
    """`images` [B, C, H, W] plus `step` [C] in the window at `corner` (int64 [2], row and column)."""
    down, across = (torch.arange(n, device=corner.device) - at for n, at in zip(images.shape[2:], corner, strict=True))
    inside = ((down >= 0) & (down < side))[:, None] & (across >= 0) & (across < side)
    return images + step[:, None, None] * inside


def move_mass(shift: Tensor, shape: Tensor, corners: Tensor, eps: float) -> Tensor:
    """`shift` [B, C, H, W], changed in place, with the second window emptied and the first filled.

    The first takes the form of `shape` [B, C, s, s] plus its own old form, and in each channel the mass of both and
    the channel's part of what is left of eps². `corners`: int64 [2, 2], the windows' (row, column).
    """
    within = torch.arange(shape.shape[-1], device=shift.device)
    first, second = ((..., row + within[:, None], column + within) for row, column in corners)
    left = (eps**2 - norms(shift) ** 2).clamp_min(0) / shift.shape[1]
    old, taken = shift[first], shift[second]
    shift[second] = torch.zeros_like(taken)  # the number 0 would have to be copied to the device
    mass = _mass(taken) + _mass(shift[first])  # what both windows cover is counted once
    new = shape + old / _mass(old).sqrt().clamp_min(TINY)
    shift[first] = new * ((left + mass).sqrt() / _mass(new).sqrt().clamp_min(TINY))
    return shift


def _mass(window: Tensor) -> Tensor:
    return window.square().sum((2, 3), keepdim=True)


def verdict(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Margins z_y - max_{j != y} z_j [B], in float32 or wider, and which images are misclassified: bool [B].

    Where there is no margin, since the logits predict nothing, no image is better: it is -inf.
    """
    return margins(logits, y).nan_to_num(-torch.inf, torch.inf, -torch.inf), ~are_right(logits, y)


def _try(logits_of: Logits, propose: Callable[[Best], Tensor], best: Best) -> Best:
    """The state after one more query, of the images that are proposed from what is best so far."""
    tried = propose(best)
    margin, wrong = verdict(logits_of(tried), best.y)
    better = (best.margin > 0) & (margin < best.margin)
    return best._replace(
        x_adv=torch.where(better.view(-1, 1, 1, 1), tried, best.x_adv),
        margin=torch.where(better, margin, best.margin),
        broken=torch.where(better, wrong, best.broken),
        query=best.query + 1,
    )


@torch.no_grad()
def square(
    logits_of: Logits,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    conditions: Conditions,
    *,
    queries: int = 5000,
    advance: Callable[[int], None] = lambda amount: None,
) -> Found:
    """The best images found near `x` [B, C, H, W], and which of them are misclassified.

    `logits_of` maps images to logits [B, K] and is never differentiated. `x`: float32 or float64 in [0, 1]; `y`,
    `rows`: int64 [B], labels and places in the evaluated set. `queries` come after the one at the start; `advance`
    is told how many more of them are over. Raises `UserError` for images smaller than 5 x 5 in L2.
    """
    norm, eps, seed = conditions.settings.norm, conditions.settings.eps, conditions.settings.seed
    search = (_Linf if norm == "linf" else _L2)(x, norm, eps, seed, queries)
    x_adv = search.start(x, rows)
    margin, broken = verdict(logits_of(x_adv), y)
    for first in range(0, queries, BLOCK):
        block = range(first, min(first + BLOCK, queries))
        left = (margin > 0).nonzero().squeeze(1)
        if len(left):
            about = search.given(x[left], rows[left], block)
            number = torch.full((), first, dtype=torch.int64, device=x.device)
            best = Best(x_adv[left], margin[left], broken[left], y[left], number, *about)
            for query in block:
                side = search.sides[query] if norm == "l2" else 0
                move = partial(_try, logits_of, partial(search.propose, side))
                best = conditions.mover(("square", norm, eps, seed, queries, side), move, best)
            x_adv[left], margin[left], broken[left] = best.x_adv, best.margin, best.broken
        advance(len(block))
    # A margin that stayed infinite has shown no way.
    return Found(x_adv, broken, margin < torch.inf)


SQUARE = Attack(square, lambda settings: Cost(passes=5004, forwards=5001), follows_gradient=False, uses_mover=True)
