"""The rows of Tables 2 and 3 of the paper in miniature: other noise laws, and a U-Net.

  python -m launch.reproduce --preset=cpu --out=DIR
  python -m launch.train --config=configs/miniature.py:half --workdir=W

  row      network  sigma_data  sigma_in / sqrt(T)
  edm      FIT      0.5         1 / sqrt(T)
  scaled   FIT      0.5         1
  half     FIT      1           1/2
  one      FIT      1           1 / sqrt(T)         (at 4 frames: half)
  double   FIT      1           2
  images   FIT      1           1, and 1 / sqrt(T) for images, which are no videos then
  ours     FIT      1           1
  unet     U-Net    1           1

P_mean is the same in all rows, as the paper keeps EDM's. It was not tuned on stills: with it,
`ours` has the noise in units of x at which FIT was seen to learn. What came: docs/miniature.md.
"""

import math

from ml_collections import ConfigDict

from configs import shapes_fit

P_MEAN = 0.3

# sigma_data, sigma_in / sqrt(T) or None for sigma_in = 1, whether images have sigma_in = 1
ROWS = {
    "edm": (0.5, None, False),
    "scaled": (0.5, 1.0, False),
    "half": (1.0, 0.5, False),
    "one": (1.0, None, False),
    "double": (1.0, 2.0, False),
    "images": (1.0, 1.0, True),
    "ours": (1.0, 1.0, False),
    "unet": (1.0, 1.0, False),
}


def get_config(row: str = "ours") -> ConfigDict:
    """A row at 4 x 16 x 16 pixels, minutes on two cores; ROW,gpu: at the 8 x 32 x 32 of shapes_fit.

    U-Nets have as many parameters as the FITs, to a tenth.
    """
    row, _, size = row.partition(",")
    if row not in ROWS or size not in ("", "gpu"):
        raise ValueError(f"there is no row {row!r}; after the colon choose {', '.join(ROWS)}")
    config = shapes_fit.get_config()
    unet_multipliers = (2, 2)
    if not size:
        unet_multipliers = (1, 1)
        config.data.update(num_frames=4, height=16, width=16, frame_rates=(8.0,))
        config.data.shapes.update(
            radius=3.0, shapes=("circle", "triangle"), speeds=(("slowly", 12.0),)
        )
        config.model.conditioning_channels = 64
        config.model.fit.update(group=(4, 2, 2), latents=32, latent_channels=64)
        config.optimizer.warmup_steps = 50
        config.training.update(steps=1000, ema_half_life=50.0)
        config.sampling.steps = 24
    config.data.image_fraction = 0.25

    sigma_data, factor, images = ROWS[row]
    full = math.sqrt(config.data.num_frames)
    sigma_in = 1.0 if factor is None else factor * full
    config.diffusion.update(sigma_data=sigma_data, sigma_in=sigma_in, P_mean=P_MEAN)
    config.diffusion.image_sigma_in = 1.0 if images else 0.0
    # The same noise for all in units of x.
    config.sampling.update(sigma_min=0.02 / sigma_in, sigma_max=100.0 / sigma_in)
    if row == "unet":
        config.model.name = "unet"
        config.model.unet.update(
            channels=32,
            multipliers=unet_multipliers,
            residual_blocks=1,
            attention_levels=(2,),
            head_channels=32,
        )
        config.diffusion.self_conditioning = 0.0
        config.optimizer.update(name="adam", learning_rate=1e-3, b2=0.999, eps=1e-8)
    return config
