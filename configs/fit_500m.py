"""FIT 500M, the paper's first stage at 16 x 36 x 64 (Table 8): 495,828,016 parameters.

  python -m launch.prepare embed --config=configs/fit_500m.py --config.data.path=DIR \\
      --t5=T5 --out=STATES
  python -m launch.train --config=configs/fit_500m.py --workdir=W --config.data.path=DIR \\
      --config.data.text_states=STATES

The recipe is Table 9's of FIT 3.9B; the paper lists none for this size. What a chip must hold and
how fast it is: python -m launch.plan --config=configs/fit_500m.py --count.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(mesh: str = "replicas") -> ConfigDict:
    """The defaults of base.py are this model's; text is T5-11B's stored states."""
    config = base.get_config(mesh).lock()
    config.model.text_encoder.update(source="stored", channels=1024)
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"  # a third of the memory, and no slower: docs/history/performance.md
    config.model.fit.unroll = 6  # 1.16 times as fast: docs/history/performance.md
    return config
