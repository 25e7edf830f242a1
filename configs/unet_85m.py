"""U-Net 85M, the paper's smaller baseline at 16 x 36 x 64 (Table 7): 84,794,883 parameters.

  python -m launch.train --config=configs/unet_85m.py --workdir=W --config.data.path=DIR \\
      --config.data.text_states=STATES
"""

from ml_collections import ConfigDict

from configs import unet_284m


def get_config(mesh: str = "replicas") -> ConfigDict:
    """U-Net 284M with the widths of the first column of Table 7."""
    config = unet_284m.get_config(mesh)
    config.model.unet.update(channels=128, multipliers=(1, 2, 2, 3))
    return config
