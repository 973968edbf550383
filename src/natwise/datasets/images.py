"""A folder with a sub-folder of image files per class: read, brought to one small size, one row each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import Parallel, cpu_count, delayed

from natwise.core.validation import shorten

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SIDE = 32  # pixels: models of pixels gain little from more, and cost grows with the square
PILOT = 200  # images that decide about size and colour


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """Pixels (n, h, w[, 3]) of bytes, and per image its class (the sub-folder), its path below the folder, its file."""

    pixels: np.ndarray
    labels: np.ndarray
    ids: tuple[str, ...]
    files: tuple[str, ...]
    notes: tuple[str, ...]


def read_image_folder(path: str | os.PathLike[str], shape: Sequence[int] | None = None) -> ImageFolder:
    """Read all images below the sub-folders of a folder; `shape` (h, w[, 3]) is that of an earlier folder.

    Images that all have one size of at most 32 x 32 pixels keep it, others are scaled to 32 pixels on the longer side.
    Files that are no readable image are left out and counted in the notes.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of images")
    classes = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    files = [file for child in classes for file in sorted(child.rglob("*")) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(
            f"{folder} holds no images: a sub-folder per class is expected, with {', '.join(SUFFIXES[:4])}"
        )
    shape = tuple(shape) if shape is not None else _common_shape(folder, files)
    read = Parallel(n_jobs=cpu_count(), prefer="threads")(delayed(read_image)(file, shape) for file in files)
    kept = [(file, image) for file, image in zip(files, read, strict=True) if image is not None]
    if not kept:
        raise ValueError(f"{folder} holds no readable image among {len(files):,} files")
    damaged = [file for file, image in zip(files, read, strict=True) if image is None]
    notes = [f"Images were scaled to {shape[1]} x {shape[0]} pixels for the models."]
    if damaged:
        first = shorten(damaged[0].relative_to(folder).as_posix())
        notes.append(f"Files that are no readable image were left out: {len(damaged):,}, such as {first}.")
    names = [file.relative_to(folder) for file, _ in kept]
    return ImageFolder(
        np.stack([image for _, image in kept]),
        np.array([name.parts[0] for name in names], dtype=object),
        tuple(name.as_posix() for name in names),
        tuple(str(file) for file, _ in kept),
        tuple(notes),
    )


def read_image(file: str | os.PathLike[str], shape: Sequence[int]) -> np.ndarray | None:
    """Return an image as bytes of `shape` (h, w) in grey or (h, w, 3) in colour; None when it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            image.draft("RGB" if len(shape) == 3 else "L", (2 * shape[1], 2 * shape[0]))  # JPEG: decodes fewer pixels
            upright = ImageOps.exif_transpose(image).convert("RGB" if len(shape) == 3 else "L")
            return np.asarray(upright.resize((shape[1], shape[0]), Image.Resampling.BOX), dtype=np.uint8)
    except Exception:  # decoders raise many kinds for damaged input, and for pictures too large to be meant
        return None


def _common_shape(folder: Path, files: list[Path]) -> tuple[int, ...]:
    """Return height, width and, unless all are grey, 3, from images spread over all files."""
    from PIL import Image

    sizes, modes = set(), set()
    for file in files[:: max(len(files) // PILOT, 1)]:
        try:
            with Image.open(file) as image:
                sizes.add(image.size)
                modes.add(image.mode)
        except Exception:  # counted when all are read
            continue
    if not sizes:
        raise ValueError(f"{folder} holds no readable image among {len(files):,} files")
    channels = () if modes <= {"1", "L", "LA", "I", "I;16", "F"} else (3,)
    width, height = np.median(np.array(sorted(sizes)), axis=0)
    if len(sizes) > 1 or max(width, height) > SIDE:
        scale = SIDE / max(width, height)
        width, height = max(round(width * scale), 1), max(round(height * scale), 1)
    return int(height), int(width), *channels
