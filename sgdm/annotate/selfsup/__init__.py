"""Encoders made of nothing but the user's own images, for when no pretrained backbone fits or is at hand.

`fit_whitened_pixels` is a linear map. `train_encoder` trains a network of `networks` by one of four objectives, none
of which sees a label: the images' neighbourhoods (`neighbours`), or views of one image that are to be alike
(`joint_embedding`: DINO, SimCLR, VICReg).
"""

from sgdm.annotate.selfsup.encoder import Images, OwnEncoder, at_size, centred, load_encoder, save_encoder
from sgdm.annotate.selfsup.pixels import fit_whitened_pixels
from sgdm.annotate.selfsup.training import train_encoder

__all__ = [
    "Images",
    "OwnEncoder",
    "at_size",
    "centred",
    "fit_whitened_pixels",
    "load_encoder",
    "save_encoder",
    "train_encoder",
]
