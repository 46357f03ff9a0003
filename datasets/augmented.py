"""Images that random transforms change together with their targets, each in two parts.

The first part draws what is random, the second works on pixels. The first belongs to the thread whose random
numbers it draws; the second, which takes almost all of the time, may be done in any.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

import datasets.transforms as T
from datasets.images import LazyImage, read_image
from datasets.masks import LazyMasks
from datasets.seeding import SharedEpoch

Item = tuple[Any, dict[str, Any]]


class AugmentedImages(Dataset):
    """Pairs (image, target), one for each image id.

    Where an epoch has been set, the random transforms of an item depend on seed, epoch and index alone;
    otherwise each call draws anew.

    Args:
        ids: image ids, in the order of the items.
        seed: of the random transforms.
        as_tensors: read pictures as uint8 tensors where nothing but this project's own transforms sees them,
            and as PIL images elsewhere.
    """

    def __init__(self, ids: list[int], seed: int = 0, as_tensors: bool = False):
        self.ids = ids
        self.seed = seed
        self._as_tensors = as_tensors
        self._epoch = SharedEpoch()

    def set_epoch(self, epoch: int | None) -> None:
        """Fix the random transforms by (seed, epoch, index), in running data workers too; None: draw anew."""
        self._epoch.value = epoch

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        return self.begin(range(len(self))[index])()  # from the end where negative; IndexError beyond

    def begin(self, index: int) -> Callable[[], Item]:
        """The first part of item `index`, 0 or more; what comes back does the second, and gives the item."""
        raise NotImplementedError

    def image_path(self, index: int) -> Path:
        """The file of the picture at `index`."""
        raise NotImplementedError

    def _image(self, index: int, transforms: T.Transform | None) -> Image.Image | LazyImage:
        """The picture for these transforms; a PIL image for none."""
        as_tensor = self._as_tensors and transforms is not None and T.takes_tensors(transforms)
        return read_image(self.image_path(index), self.ids[index], as_tensor)

    def _transformed(
        self, index: int, image: Any, target: dict[str, Any], transforms: T.Transform | None
    ) -> Callable[[], Item]:
        """The end of `begin`. Image and masks may be lazy ones."""
        if transforms is not None:
            if isinstance(image, LazyImage) and not T.takes_lazy_images(transforms):
                image = image.tensor()
            with self._epoch.drawing(self.seed, index):
                image, target = transforms(image, target)

        def finish() -> Item:
            pixels = image.tensor() if isinstance(image, LazyImage) else image
            masks = target.get("masks")
            return pixels, {**target, "masks": masks.tensor()} if isinstance(masks, LazyMasks) else target

        return finish
