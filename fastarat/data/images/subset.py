"""A random part of a split, chosen by the seed: folders come sorted by class, so the first images are no sample."""

from fastarat_kernels import philox

from fastarat.data.images.dataset import Images


def subset(images: Images, num_images: int | None, seed: int) -> Images:
    """`num_images` images of the split in random order; the split itself where that is all, or None."""
    if num_images is None or num_images >= len(images.labels):
        return images
    return shuffled(images, num_images, seed)


def shuffled(images: Images, num_images: int, seed: int) -> Images:
    """`num_images` images of the split, or all it has, in random order: the first n of them are its `subset` of n."""
    chosen = philox.permutation(seed, 0, len(images.labels))[:num_images].numpy()
    return Images(images.images[chosen], images.labels[chosen])
