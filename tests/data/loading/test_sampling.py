"""Quasi-random order: every image once, neighbours near to each other, all of it a function of seed and epoch."""

from dataclasses import replace

import numpy as np
import torch

from fastarat.data.loading import sampling as order
from fastarat.data.loading.sampling import quasi_random_order, random_order
from tests.helpers.small_sets import encoded, jpeg


def many(tmp_path, monkeypatch, count: int = 4000):
    """Images of a kilobyte each, one after the other in one file, as far as anyone asks before reading."""
    monkeypatch.setattr(order, "BLOCK_BYTES", 10 * 1000)
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 8)
    one = encoded(tmp_path, {"a.jpg": jpeg(0)}).take(np.zeros(count, np.int64))
    shuffled = np.random.default_rng(0).permutation(count)  # the set's order is not the file's
    return replace(one, offsets=1000 * shuffled, lengths=np.full(count, 1000))


def test_each_image_comes_once(tmp_path, monkeypatch):
    found = quasi_random_order(many(tmp_path, monkeypatch), 0, 1)
    assert sorted(found.tolist()) == list(range(4000))


def test_a_window_of_images_is_read_from_few_blocks_which_are_far_apart(tmp_path, monkeypatch):
    images = many(tmp_path, monkeypatch)
    blocks = images.offsets[quasi_random_order(images, 0, 1).numpy()] // 10_000
    windows = blocks.reshape(-1, 80)
    assert all(len(set(window)) == 8 for window in windows.tolist())
    assert all(max(window) - min(window) > 8 for window in windows.tolist())
    # Within a window the blocks are mixed: no image follows its neighbour more often than by chance (1 in 8).
    assert (windows[:, 1:] == windows[:, :-1]).mean() < 0.2
    everywhere = images.offsets[random_order(4000, 0, 1).numpy()] // 10_000
    assert len(set(everywhere[:80].tolist())) > 60


def test_it_hangs_on_seed_and_epoch_alone(tmp_path, monkeypatch):
    images = many(tmp_path, monkeypatch)
    first = quasi_random_order(images, 0, 1)
    assert torch.equal(first, quasi_random_order(images, 0, 1))
    assert not torch.equal(first, quasi_random_order(images, 0, 2))
    assert not torch.equal(first, quasi_random_order(images, 1, 1))
