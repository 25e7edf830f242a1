"""Makes the files beside it: what independent implementations say of the tests' inputs.

  python3.11 -m venv ORACLES
  ORACLES/bin/pip install torch scipy transformers open-clip-torch
  ORACLES/bin/pip install --no-deps torch-fidelity cd-fvd clean-fid pytorch-fid
  ORACLES/bin/python tests/golden/metrics/make.py [NAME ...]

None of these is in requirements-test.txt: the tests compare with the files. Weights are random, by
`tests/evaluation/inputs.py`, since nothing here may be downloaded; a network that agrees with such
weights has every layer, stride, padding and epsilon in place.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch_fidelity

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "evaluation"))

import inputs  # noqa: E402


def distances() -> dict:
    """FID, KID and IS by torch-fidelity, FVD's formula by cd-fvd."""
    from cdfvd.fvd import cdfvd
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    class Statistics:
        def __init__(self, x):
            self.x = x.astype(np.float64)

        def get_mean_cov(self):
            return self.x.mean(0), np.cov(self.x, rowvar=False)

    real, fake = inputs.features(600, 40, 1), inputs.features(500, 40, 2, shift=0.1)
    statistics = [fid_features_to_statistics(torch.tensor(x)) for x in (real, fake)]
    fid = fid_statistics_to_metric(*statistics, verbose=False)
    kid = kid_features_to_metric(
        torch.tensor(real), torch.tensor(fake), kid_subset_size=200, kid_subsets=20, verbose=False
    )
    score = lambda shuffle: isc_features_to_metric(
        torch.tensor(inputs.logits(503, 101, 3)), splits=10, shuffle=shuffle
    )
    fvd = cdfvd.compute_fvd_from_stats(None, Statistics(fake), Statistics(real))
    return {
        "fid": fid["frechet_inception_distance"],
        "fvd": float(fvd),
        "kid": [kid["kernel_inception_distance_mean"], kid["kernel_inception_distance_std"]],
        "is": [score(False)[f"inception_score_{part}"] for part in ("mean", "std")],
        "is_shuffled": [score(True)[f"inception_score_{part}"] for part in ("mean", "std")],
    }


MAKERS = {"distances": distances}


def main(names: list[str]) -> None:
    print("torch", torch.__version__, "torch-fidelity", torch_fidelity.__version__)
    torch.set_grad_enabled(False)
    for name in names or MAKERS:
        (HERE / f"{name}.json").write_text(json.dumps(MAKERS[name](), indent=1) + "\n")
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
