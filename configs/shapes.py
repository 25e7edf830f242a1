"""Captioned moving shapes, made on the fly: a small text-to-video run for two CPU cores.

  bash launch/demo.sh
  python -m launch.train --config=configs/shapes.py --workdir=runs/shapes

How the sizes were found, and what the model reaches: docs/shapes.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(mesh: str = "replicas") -> ConfigDict:
    """A small FIT on 4 frames of 16 x 16 pixels, one patch a frame."""
    config = base.get_config(mesh).lock()
    config.data.update(
        source="shapes",
        num_frames=4,
        height=16,
        width=16,
        pad_rows=0,
        frame_rates=(8.0, 10.0),
        image_fraction=0.125,
        text_length=8,
    )
    # Paths pass near the middle of the frame (spread), so that what a caption says shows even where
    # noise hides the object; on white, all colors darken their pixels, so what motion has in common
    # for all of them is learned once.
    config.data.shapes.update(
        radius=3.0,
        shapes=("circle", "triangle", "cross"),
        speeds=(("slowly", 8.0), ("quickly", 19.0)),
        background=1.0,
        spread=0.25,
    )
    config.model.fit.update(
        patch=16,
        group=(4, 1, 1),
        patch_channels=256,
        latents=8,
        latent_channels=128,
        blocks=2,
        global_layers=1,
        patch_head_channels=64,
        latent_head_channels=32,
        # A stem behind a layer norm turns noise into tokens of unit size. Tables smaller than that
        # hide which frame a token is from, and direction is learned late or never: docs/shapes.md.
        table_std=2.0,
    )
    config.model.update(conditioning_channels=128, dropout=0.0)
    config.model.text_encoder.update(channels=64, heads=2, head_channels=32, hidden=128, layers=1)
    # A frame of 768 numbers is one token of 256, which cannot carry a copy of its noise. With a
    # small sigma_in F is almost -x, which needs no copy: unlearned noise in D stays below
    # sqrt(sigma_in) / 2. P_mean, sigma_min and sigma_max are in units of 1 / sigma_in.
    config.diffusion.update(sigma_in=0.05, P_mean=4.5, P_std=1.0)
    config.sampling.update(steps=10, sigma_min=2.0, sigma_max=1000.0, frame_rate=8.0)
    config.sampling.update(guidance=1.0, oscillate=False, threshold=0.0)
    config.optimizer.update(name="adam", learning_rate=3e-3, warmup_steps=200, b2=0.99, eps=1e-8)
    config.training.update(steps=3000, batch_size=32, ema_half_life=100.0)
    config.checkpoint.update(every_steps=500, keep_every=500)
    config.log.update(
        samples_every=100,
        sample_prompts=(
            "a red circle moves left",
            "a green triangle moves right quickly",
            "a blue cross moves up slowly",
            "a yellow circle moves down",
        ),
    )
    return config
