"""Makes the files beside it: what independent implementations say of the tests' inputs.

  python3.11 -m venv ORACLES
  ORACLES/bin/pip install torch scipy transformers open-clip-torch requests einops h5py imageio
  ORACLES/bin/pip install --no-deps torch-fidelity cd-fvd clean-fid pytorch-fid
  ORACLES/bin/python tests/golden/metrics/make.py [NAME ...]

None of these is in requirements-test.txt: the tests compare with the files. Weights are random, by
`tests/evaluation/inputs.py`, since nothing here may be downloaded; a network that agrees with such
weights has every layer, stride, padding and epsilon in place.
Made with torch 2.14.1, torch-fidelity 0.4.0, cd-fvd 0.1.1, transformers 5.24.0, open-clip-torch
3.3.0, clean-fid 0.1.35 and pytorch-fid 0.3.0 on a CPU, float32.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch_fidelity
from PIL import Image

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


def archives() -> dict:
    """Writes what torch saves, in its three forms; returns the tensors in them."""
    folder = HERE / "archives"
    folder.mkdir(exist_ok=True)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    network.register_buffer("turned", torch.arange(6).reshape(2, 3).half().t())
    tensors = state(network)
    torch.save(tensors, folder / "zip.pt")
    torch.save(tensors, folder / "old.pt", _use_new_zipfile_serialization=False)
    torch.jit.trace(network.eval(), torch.ones(1, 3, 2, 2)).save(folder / "script.pt")
    return {name: [tuple(x.shape), x.flatten().tolist()] for name, x in tensors.items()}


def resizes() -> dict:
    """Every resize kernel on one small picture, by the code that each reference calls."""
    from cdfvd.third_party.i3d.utils import preprocess_i3d
    from cleanfid.resize import make_resizer
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as like_tensorflow,
    )
    from torchvision import transforms

    image = inputs.pixels((1, 13, 18, 3), 0)
    x = torch.tensor(image).permute(0, 3, 1, 2).float()
    channels_last = lambda y: y.permute(0, 2, 3, 1).numpy()
    tf1 = lambda corners: like_tensorflow(x, size=(11, 7), align_corners=corners)
    clean = make_resizer("PIL", False, "bicubic", (7, 11))(image[0])[None]
    clip = transforms.Compose(
        [transforms.Resize(8, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(8)]
    )(Image.fromarray(image[0]))
    half_pixel = preprocess_i3d(image[None], target_resolution=(11, 7))[0].permute(1, 2, 3, 0)
    arrays = {
        "tf1": channels_last(tf1(False)),
        "align_corners": channels_last(tf1(True)),
        "half_pixel": (half_pixel.numpy() + 1) * 127.5,
        "pillow_float": clean,
        "clip": np.asarray(clip),
    }
    return {name: array.round(2).ravel().tolist() for name, array in arrays.items()}


def state(network: torch.nn.Module) -> dict:
    """Fills a network with the tests' random tensors; returns its state."""
    tensors = {
        name: torch.tensor(inputs.tensor(name, tuple(value.shape)))
        for name, value in network.state_dict().items()
        if not name.endswith(("num_batches_tracked", "position_ids"))
    }
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    assert not unexpected and all(n.endswith(("tracked", "position_ids")) for n in missing), missing
    return network.state_dict()


def summary(features: torch.Tensor) -> dict:
    """A few features as they are, and random sums of all of them."""
    array = features.float().numpy()
    return {"first": array[:, :6].tolist(), "sums": inputs.projection(array).tolist()}


def inception() -> dict:
    """torch-fidelity's Inception-v3 on its own preprocessing and clean-fid's; pytorch-fid's."""
    import pytorch_fid.inception
    from cleanfid.resize import make_resizer
    from torch_fidelity import feature_extractor_inceptionv3 as module

    layers = ["2048", "logits_unbiased"]
    module.load_state_dict_from_url = lambda *_, **__: {}  # nothing is fetched
    load, module.FeatureExtractorInceptionV3.load_state_dict = (
        module.FeatureExtractorInceptionV3.load_state_dict,
        lambda *_, **__: None,
    )
    network = module.FeatureExtractorInceptionV3("inception", layers)
    module.FeatureExtractorInceptionV3.load_state_dict = load
    state(network)
    images = inputs.pixels((2, 61, 90, 3), 0)
    pooled, logits = network(torch.tensor(images).permute(0, 3, 1, 2))
    module.interpolate_bilinear_2d_like_tensorflow1x = lambda x, **_: resized
    resizer = make_resizer("PIL", False, "bicubic", (299, 299))
    resized = torch.tensor(np.stack([resizer(i) for i in images])).permute(0, 3, 1, 2)
    clean, _ = network(torch.tensor(images).permute(0, 3, 1, 2))
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: network.state_dict()
    other = pytorch_fid.inception.InceptionV3([3]).eval()
    (half_pixel,) = other(torch.tensor(images).permute(0, 3, 1, 2) / 255)
    return {
        "pooled": summary(pooled),
        "logits": summary(logits),
        "clean": summary(clean),
        "half_pixel": summary(half_pixel[:, :, 0, 0]),
    }


def i3d() -> dict:
    """cd-fvd's I3D on its own preprocessing, with its epsilon and with the original's."""
    from cdfvd.third_party.i3d import pytorch_i3d, utils

    network = pytorch_i3d.InceptionI3d(400, in_channels=3).eval()
    state(network)
    videos = inputs.pixels((1, 17, 36, 64, 3), 0)  # two places in time are averaged
    results = {"port": summary(network(utils.preprocess_i3d(videos)))}
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eps = 1e-3
    results["original"] = summary(network(utils.preprocess_i3d(videos)))
    return results


def clip() -> dict:
    """Two toy CLIPs: transformers' with its names, open_clip's with OpenAI's names."""
    import open_clip
    from transformers import CLIPConfig, CLIPModel

    images = torch.tensor(inputs.colors((2, 32, 32, 3), 1)).permute(0, 3, 1, 2)
    ids = torch.tensor(inputs.tokens(2, 300, 1)).long()
    results = {}
    for activation in ("quick_gelu", "gelu"):
        vision, text = inputs.CLIP_TOWERS
        towers = dict(text_config=text, vision_config=vision, projection_dim=24)
        for tower in (text, vision):
            tower.update(projection_dim=24, hidden_act=activation)
        network = CLIPModel(CLIPConfig(**towers)).eval()
        state(network)
        features = network(input_ids=ids, pixel_values=images)
        # What the towers pool is projected in place by transformers 5.
        image_features, text_features = (
            part.pooler_output
            for part in (features.vision_model_output, features.text_model_output)
        )
        results[f"transformers_{activation}"] = {
            "images": summary(image_features),
            "texts": summary(text_features),
        }
    network = open_clip.CLIP(
        24,
        dict(layers=2, width=128, head_width=64, patch_size=8, image_size=32),
        dict(context_length=77, vocab_size=300, width=64, heads=1, layers=2),
        quick_gelu=True,
    ).eval()
    tensors = state(network)
    results["open_clip"] = {
        "images": summary(network.encode_image(images)),
        "texts": summary(network.encode_text(ids)),
    }
    results["open_clip_shapes"] = {n: tuple(x.shape) for n, x in tensors.items()}
    return results


class Log(dict):
    """Notes which pairs have a rank."""

    def __init__(self, ranks):
        super().__init__(ranks)
        self.used = {}

    def get(self, pair, otherwise):
        if pair in self:
            self.used[pair] = self[pair]
        return super().get(pair, otherwise)


def tokens() -> dict:
    """open_clip's tokens of the captions, with the merges that they need."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    tokenizer.bpe_ranks = log = Log(tokenizer.bpe_ranks)
    rows = [[int(i) for i in row if i] for row in tokenizer(inputs.CAPTIONS)]
    merges = [[*pair, rank] for pair, rank in sorted(log.used.items(), key=lambda item: item[1])]
    return {"ids": rows, "merges": merges}


class C3D(torch.nn.Module):
    """Written here from the published layers: no package has it."""

    def __init__(self, widths=(64, 128, 256, 512, 512), hidden=4096):
        super().__init__()
        before, layers = 3, ("1a", "2a", "3a 3b", "4a 4b", "5a 5b")
        self.groups = []
        for names, width in zip(layers, widths, strict=True):
            for name in names.split():
                self.add_module(f"conv{name}", torch.nn.Conv3d(before, width, 3, padding=1))
                before = width
            self.groups.append([f"conv{name}" for name in names.split()])
        self.fc6 = torch.nn.Linear(before * 16, hidden)
        self.fc7 = torch.nn.Linear(hidden, hidden)
        self.fc8 = torch.nn.Linear(hidden, 101)

    def forward(self, x):
        for i, names in enumerate(self.groups):
            for name in names:
                x = torch.relu(getattr(self, name)(x))
            window = (2, 2, 2) if i else (1, 2, 2)
            x = torch.nn.functional.max_pool3d(x, window, ceil_mode=True)  # Chainer's cover_all
        x = torch.relu(self.fc6(x.flatten(1)))
        return self.fc8(torch.relu(self.fc7(x)))


def c3d() -> dict:
    """A narrow C3D and the published one on the same clip, with an align-corners resize."""
    video = torch.tensor(inputs.pixels((1, 16, 36, 64, 3), 0)).float()
    frames = video[0].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        frames, size=(112, 112), mode="bilinear", align_corners=True
    )
    mean = torch.tensor(inputs.mean_clip())[:, :, 8:120, 8:120]
    clip = (resized.flip(1).permute(1, 0, 2, 3) - mean)[None]
    results = {}
    for name, sizes in (("narrow", ((4, 6, 8, 10, 12), 16)), ("published", ())):
        network = C3D(*sizes).eval()
        state(network)
        results[name] = summary(network(clip) / 128)
    return results


MAKERS = {
    "c3d": c3d,
    "clip": clip,
    "tokens": tokens,
    "i3d": i3d,
    "distances": distances,
    "archives": archives,
    "resizes": resizes,
    "inception": inception,
}


def main(names: list[str]) -> None:
    print("torch", torch.__version__, "torch-fidelity", torch_fidelity.__version__)
    torch.set_grad_enabled(False)
    for name in names or MAKERS:
        lines = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in MAKERS[name]().items())
        (HERE / f"{name}.json").write_text("{" + ",\n ".join(lines) + "}\n")
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
