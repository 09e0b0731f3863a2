"""The chest CT set out of Kaggle's zip: its table, images and masks, and nothing else."""

import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from .fetch import BROKEN_ZIP, LARGEST_PICTURE, readable, require_room, write

KAGGLE = "polomarco/chest-ct-segmentation"
LARGEST = 8_000_000_000  # bytes unpacked; the real set has 1.8
# What is taken, with or without a folder around it all. No name of this form leads out of a folder.
WANTED = re.compile(r"(?:\w[\w. -]*/)??(train\.csv|(images|masks)/(?:\2/)?\w[\w.-]*\.(?:jpe?g|png))", re.ASCII)

Files = dict[str, tuple[int, Callable[[], bytes]]]  # name -> size in bytes, and how to read it


def unpack_chest_ct(source: str | Path, folder: str | Path, progress: bool = False) -> int:
    """Take train.csv, the images and the masks out of Kaggle's zip, or out of a folder that holds the same.

    Links come out as plain files, and names that lead elsewhere not at all.

    Args:
        source: the zip, or the folder.
        folder: where the files go, in the layout that `ChestCT` opens; files there of the right size are kept.

    Returns the number of pictures. Raises FileNotFoundError where there is no source, ValueError for a damaged or
    another zip, one that would unpack to more than 8 GB, too little room, or a folder with another train.csv.
    """
    source, folder = Path(source), Path(folder)
    if source.is_dir():
        inside = [path for path in source.rglob("*") if path.is_file()]
        return _copy({p.relative_to(source).as_posix(): (p.stat().st_size, p.read_bytes) for p in inside},
                     source, folder, progress)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist: expected the zip of kaggle.com/datasets/{KAGGLE}")
    try:
        with zipfile.ZipFile(source) as archive:
            return _copy({i.filename: (i.file_size, partial(archive.read, i)) for i in archive.infolist()},
                         source, folder, progress)
    except BROKEN_ZIP as error:
        raise ValueError(f"{source} is no whole zip ({error}): download it again") from None


def _copy(found: Files, source: Path, folder: Path, progress: bool) -> int:
    files = {match[1]: found[name] for name in found if (match := WANTED.fullmatch(name))}
    if "train.csv" not in files or len(files) == 1:
        raise ValueError(f"{source} holds no train.csv with images/ and masks/: expected the zip of {KAGGLE}")
    total, largest = sum(size for size, _ in files.values()), max(size for size, _ in files.values())
    if total > LARGEST or largest > LARGEST_PICTURE:
        sizes = f"{readable(total)}, one file of it to {readable(largest)}"
        raise ValueError(f"{source} would unpack to {sizes}: that is not the zip of {KAGGLE}, nothing was unpacked")
    table = files.pop("train.csv")[1]()
    if (folder / "train.csv").is_file() and (folder / "train.csv").read_bytes() != table:
        raise ValueError(f"{folder} holds another train.csv: nothing was changed, choose another folder")
    missing = {folder / name: file for name, file in files.items() if _size(folder / name) != file[0]}
    require_room(folder, sum(size for size, _ in missing.values()), f"the pictures of {source}")
    for path, (_, read) in tqdm(missing.items(), unit="img", desc="unpack", disable=not progress):
        write(path, read())
    write(folder / "train.csv", table)  # last: with it the set is complete
    return len(files)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def chest_ct_from_kaggle() -> Path:
    """The folder that kagglehub downloads the set to. Raises ValueError, with what to do, where it cannot."""
    by_hand = f"download the zip from kaggle.com/datasets/{KAGGLE} and give it with --zip"
    try:
        import kagglehub
    except ImportError:
        raise ValueError(f"kagglehub is not installed: {by_hand}") from None
    try:
        return Path(kagglehub.dataset_download(KAGGLE))
    except Exception as error:  # it raises what it, its HTTP library and the network please
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"kagglehub could not download the set ({said}): log in to Kaggle, or {by_hand}") from None
