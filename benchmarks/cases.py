"""Every case, by name. A new one is a generator of comparisons and a line here."""

from __future__ import annotations

from benchmarks import annotate, kernels, raster, sampling, unet
from benchmarks.comparison import Case

CASES = {
    case.name: case
    for case in (
        Case(
            "group_norm",
            "group norm, scale and shift, SiLU of [B, C, H, W] in the UNets",
            kernels.group_norm,
        ),
        Case(
            "attention",
            "softmax(q k^T / sqrt(dim)) v of [B, heads, tokens, dim]",
            kernels.attention,
        ),
        Case("ema_update", "two moving averages of all weights of the paper's UNet", kernels.ema_update),
        Case("noise", "standard normals [B, C, H, W] of training, and four uniforms an image", kernels.noise),
        Case("raster", "masks and label maps of 64x64 from run lengths and polygons, on the CPU", raster.raster),
        Case("annotate", "k-means, LOST and features of a backbone, as they annotate a data set", annotate.annotate),
        Case("sampling", "a batch of images by guided DDIM, with the paper's UNet on a GPU", sampling.sampling),
        Case("train_step", "forward, backward, AdamW and EMA of the paper's UNet", unet.train_step),
    )
}
