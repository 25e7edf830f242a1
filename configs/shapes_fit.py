"""The paper's recipe in small: FIT with patches of 4 pixels and groups, LAMB, text to motion.

  python -m launch.train --config=configs/shapes_fit.py --workdir=runs/shapes_fit

Captioned shapes of 8 frames of 32 x 32 pixels, in hours of two CPU cores. What differs from Tables
8 and 9 of the paper, and why, stands beside the fields. What it reaches: docs/shapes_fit.md.
"""

import math

from ml_collections import ConfigDict

from configs import base


def get_config(mesh: str = "replicas") -> ConfigDict:
    """FIT on 8 x 32 x 32: 512 patches in 4 groups, 64 latents."""
    config = base.get_config(mesh).lock()
    config.data.update(
        source="shapes",
        num_frames=8,
        height=32,
        width=32,
        pad_rows=0,
        frame_rates=(8.0, 10.0),
        image_fraction=0.125,  # 0.5; but stills say nothing of motion, which is learned last
        text_length=8,
    )
    config.data.shapes.update(
        radius=5.5,
        shapes=("circle", "triangle", "cross"),
        speeds=(("slowly", 8.0), ("quickly", 18.0)),
        background=1.0,
        spread=0.25,
    )
    # Table 8 with two blocks instead of six, one global layer instead of four, and a thirteenth of
    # the widths. Each group spans all frames and a quarter of the picture, as the paper's span
    # an eighth.
    config.model.fit.update(
        patch=4,
        group=(8, 4, 4),
        patch_channels=64,
        latents=64,
        latent_channels=128,
        blocks=2,
        global_layers=1,
        patch_head_channels=16,
        latent_head_channels=32,
        table_std=1.0,  # 0.02; the stem's norm makes tokens of unit size of noise: docs/shapes.md
        write_scale=0.1,  # 1; patches agree sooner: docs/history/patches_agree.md
    )
    config.model.update(conditioning_channels=128, dropout=0.0)
    config.model.text_encoder.update(channels=64, heads=2, head_channels=32, hidden=128, layers=1)
    # sigma_in is s sqrt(T) of 3.2. P_mean is not -1.2: at that, patches can win 1 to 2 % of the
    # loss by agreeing, and these runs are 1/8,000 as long as the paper's.
    config.diffusion.update(sigma_in=32 / 64 * math.sqrt(8), P_mean=1.5)
    config.sampling.update(steps=32, sigma_min=0.01, sigma_max=100.0, frame_rate=8.0)
    config.sampling.update(guidance=1.0, oscillate=False, threshold=0.0)
    config.optimizer.update(warmup_steps=100)  # LAMB at 5e-3 with a cosine, as in Table 9
    config.training.update(steps=9000, batch_size=32, ema_half_life=100.0)
    config.checkpoint.update(every_steps=500, keep_every=500)
    return config
