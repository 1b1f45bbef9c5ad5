"""Say whether FFCV works here: write images as raw pixels and as JPEG, read both back, compare."""

import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.loader import Loader, OrderOption
from ffcv.writer import DatasetWriter

NUM_IMAGES, SIZE = 16, 32
# A JPEG of a smooth image differs by a few grey levels; a wrong plane or order by tens.
TOLERANCE = {"raw": 0, "jpg": 8}


class Ramps:
    """Images whose three planes are ramps of different slopes, labelled by their index."""

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        rows, columns = np.mgrid[:SIZE, :SIZE]
        planes = (4 * rows + 8 * index, 4 * columns, 2 * (rows + columns) + 4 * index)
        return np.stack(planes, axis=-1).astype(np.uint8), index


def largest_difference(file: Path, write_mode: str) -> int:
    """Write the images to `file`, read them in order: the largest difference of a pixel, 0 to 255."""
    fields = {"image": RGBImageField(write_mode=write_mode, jpeg_quality=95), "label": IntField()}
    DatasetWriter(str(file), fields, num_workers=1).from_indexed_dataset(Ramps(), chunksize=NUM_IMAGES)
    wanted, differences = Ramps(), []
    for images, labels in Loader(str(file), batch_size=4, num_workers=1, order=OrderOption.SEQUENTIAL):
        for image, label in zip(np.asarray(images).copy(), np.asarray(labels).ravel(), strict=True):
            if label != len(differences):
                raise SystemExit(f"FFCV: image {len(differences)} came back with label {label}")
            differences.append(int(np.abs(image.astype(int) - wanted[label][0]).max()))
    if len(differences) != NUM_IMAGES:
        raise SystemExit(f"FFCV: {len(differences)} of {NUM_IMAGES} images came back")
    return max(differences)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {mode: largest_difference(Path(folder) / f"{mode}.beton", mode) for mode in TOLERANCE}
    for mode, difference in found.items():
        if difference > TOLERANCE[mode]:
            raise SystemExit(f"FFCV: pixels written as {mode} differ by {difference} when read")
    precision = ", ".join(f"{mode} within {difference}" for mode, difference in found.items())
    print(f"FFCV {version('ffcv')} works: {NUM_IMAGES} images written and read ({precision} grey levels)")


if __name__ == "__main__":
    main()
