"""The rows of Table 3 of the paper: FIT 500M under other noise laws.

  python -m launch.train --config=configs/ablation.py:edm --workdir=W --config.data.path=DIR \\
      --config.data.text_states=STATES

  row      sigma_data  sigma_in   FID   FVD     of the paper, Table 3
  edm      0.5         1          6.58  39.95
  scaled   0.5         4          4.03  31.00
  half     1           2          4.45  34.89
  ours     1           4          3.07  27.79   (configs/fit_500m.py)

Its last row, images with a sigma_in of their own and not as videos, has no configuration yet.
"""

from ml_collections import ConfigDict

from configs import fit_500m

ROWS = {"edm": (0.5, 1.0), "scaled": (0.5, 4.0), "half": (1.0, 2.0), "ours": (1.0, 4.0)}


def get_config(row: str = "ours") -> ConfigDict:
    """FIT 500M with one row's sigma_data and sigma_in."""
    config = fit_500m.get_config()
    config.diffusion.sigma_data, config.diffusion.sigma_in = ROWS[row]
    return config
