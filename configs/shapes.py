"""Captioned moving shapes, made on the fly: learns text to video from nothing on two CPU cores.

bash launch/demo.sh
python -m launch.train --config=configs/shapes.py --workdir=runs/shapes
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """A small FIT on 4 frames of 16 x 16 pixels."""
    config = base.get_config().lock()
    config.data.update(
        source="shapes",
        num_frames=4,
        height=16,
        width=16,
        pad_rows=0,
        frame_rates=(8.0, 12.0),
        image_fraction=0.25,
        text_length=8,
    )
    config.data.shapes.update(radius=3.2, speeds=(("slowly", 8.0), ("quickly", 16.0)))
    config.model.update(
        patch=8,
        group=(4, 2, 2),
        patch_channels=128,
        latents=16,
        latent_channels=128,
        blocks=2,
        global_layers=1,
        patch_head_channels=32,
        latent_head_channels=32,
        conditioning_channels=128,
        dropout=0.0,
    )
    config.model.text_encoder.update(channels=64, heads=2, head_channels=32, hidden=128, layers=2)
    config.diffusion.update(sigma_in=1.0, P_mean=0.8)
    config.optimizer.update(name="adam", learning_rate=3e-3, warmup_steps=100, b2=0.99, eps=1e-8)
    config.training.update(steps=1200, batch_size=32, ema_half_life=100.0)
    config.sampling.update(steps=12, guidance=1.0, frame_rate=8.0)
    config.checkpoint.update(every_steps=200)
    config.log.update(
        metrics_every=1,
        samples_every=400,
        sample_prompts=(
            "a red circle moves left",
            "a green square moves right quickly",
            "a blue triangle moves up slowly",
            "a yellow circle moves down",
        ),
    )
    return config
