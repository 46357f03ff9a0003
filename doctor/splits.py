"""Which split a picture belongs to, by what tools write: folders, lists of files; or drawn."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from doctor.formats.record import Picture, lines_of

SPLITS = ("train", "val", "test")
_WORDS = {
    "train": "train", "training": "train", "trainval": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_SHARE = 0.8  # of the pictures, for training


def split_of(name: str) -> str:
    """The split that is a word of a file's name without its ending, the last one; '' where none is.

    As in instances_train2014, lvis_v1_val, image_info_test-dev2017.
    """
    words = [re.sub("[0-9]+$", "", word) for word in re.split("[^a-z0-9]+", name.lower())]
    found = [_WORDS[word] for word in words if word in _WORDS]
    return "test" if "test" in words else "".join(found[-1:])


def split_of_folders(parts: Iterable[str]) -> str:
    """The split that a folder is called by, such as val or valid or val2017; the innermost counts."""
    for part in reversed(list(parts)):
        word = re.fullmatch("([a-z]+)[-_]?[0-9]*", part.lower())
        if word and word[1] in _WORDS:
            return _WORDS[word[1]]
    return ""


def lists_of(source: Path) -> dict[str, list[str]]:
    """Split -> the lines of its list: train.txt and the like, in the folder or in ImageSets/Main below it.

    In ImageSets lists of each class, such as car_train.txt, count where there is none of all. A trainval.txt
    counts where there is no train.txt.
    """
    for folder in (source / "ImageSets" / "Main", source / "ImageSets", source):
        files = {file.stem.lower(): file for file in sorted(folder.glob("*.txt"))}
        found = [(file, stem) for stem, file in files.items() if stem in _WORDS]
        if not found and folder != source:
            words = [(file, stem.rpartition("_")[2]) for stem, file in files.items()]
            found = [(file, word) for file, word in words if word in _WORDS]
        lists: dict[str, list[str]] = {}
        for file, word in found:
            if word != "trainval" or "train" not in [other for _, other in found]:
                lists.setdefault(_WORDS[word], []).extend(lines_of(file))
        if lists:
            return lists
    return {}


def listed_splits(source: Path, stems: Iterable[str]) -> dict[str, str]:
    """Which of these names of files, without endings, a list (see lists_of) names -> its split."""
    known, listed = set(stems), dict[str, str]()
    for split, lines in sorted(lists_of(source).items()):  # test first: train must not have its pictures
        for line in lines:
            names = [line, line.rpartition(" ")[0]]  # lists of a class end their lines with 1, 0 or -1
            found = [Path(name.strip(' "')).name for name in names]
            found += [os.path.splitext(name)[0] for name in found]
            listed.setdefault(next((name for name in found if name in known), line), split)
    return listed


def as_listed(source: Path, pictures: Sequence[Picture]) -> list[Picture]:
    """Pictures, those that a list names with its split."""
    listed = listed_splits(source, (picture.path.stem for picture in pictures))
    return [picture._replace(split=listed.get(picture.path.stem, picture.split)) for picture in pictures]


def draw(
    splits: Sequence[str], names: Sequence[str], share: float | None, seed: int
) -> tuple[list[str], str]:
    """The splits of pictures, with those drawn that are not given -> splits, and one line on what was drawn.

    Test pictures stay test pictures. The others are drawn where a share is given; else those without a split
    are, and where there is no val, a part of train.

    Args:
        splits: of each picture, '' where the source does not say.
        names: of each picture; the draw depends on them and not on their order.
        share: of the pictures that go to train; None: 0.8 of those that are drawn.
    """
    places = range(len(splits))
    free = [i for i in places if splits[i] != "test" and (share is not None or not splits[i])]
    if not free and "train" in splits and "val" not in splits:
        free = [i for i in places if splits[i] == "train"]
    free.sort(key=lambda i: names[i])
    random.Random(seed).shuffle(free)
    count = round((_SHARE if share is None else share) * len(free))
    chosen = {place: "train" if rank < count else "val" for rank, place in enumerate(free)}
    said = f"drawn: {count} pictures for train, {len(free) - count} for val (--split, --seed)" if free else ""
    return [chosen.get(i, splits[i]) for i in places], said
