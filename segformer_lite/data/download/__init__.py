"""Public data sets by one command each: COCO 2017 picture by picture, the chest CT set out of its zip.

Every file is written beside its place and renamed once it is whole, so a download may be cut at any moment and is
taken up by running it again.
"""

from .chest_ct import chest_ct_from_kaggle, unpack_chest_ct
from .coco import Download, download_coco

__all__ = ["Download", "chest_ct_from_kaggle", "download_coco", "unpack_chest_ct"]
