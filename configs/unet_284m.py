"""U-Net 284M, the paper's larger baseline at 16 x 36 x 64 (Table 7): 284,331,267 parameters.

  python -m launch.train --config=configs/unet_284m.py --workdir=W --config.data.path=DIR \\
      --config.data.text_states=STATES

The ADM U-Net with temporal attention and text cross-attention; Adam as in Table 9.
"""

from ml_collections import ConfigDict

from configs import fit_500m


def get_config(mesh: str = "replicas") -> ConfigDict:
    """The second column of Table 7 (base.py's) with the U-Nets' column of Table 9."""
    config = fit_500m.get_config(mesh)
    config.model.name = "unet"
    config.diffusion.self_conditioning = 0.0  # a U-Net has no latents to carry
    config.optimizer.update(name="adam", learning_rate=1e-4, b2=0.999, eps=1e-8)
    return config
