"""Samples from an exported folder by its StableHLO alone: jax, safetensors and sentencepiece.

  pip install jax safetensors sentencepiece
  python from_stablehlo.py exported "a red circle moves left" video.npy

Runs on whatever device jax finds. Writes uint8 [frames, height, width, 3].
"""

import json
import sys
from pathlib import Path

if len(sys.argv) != 4:
    sys.exit(__doc__)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import sentencepiece  # noqa: E402
from jax import export  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

folder, prompt, out = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
config = json.loads((folder / "config.json").read_text())["config"]
parameters = {}
for file in sorted(folder.glob("*.safetensors")):
    parameters |= load_file(file)
sampler = export.deserialize(bytearray((folder / "sampler.stablehlo").read_bytes()))

# The prompt ends with id 1 and is filled up with 0, as T5's are.
length = config["data"]["text_length"]
vocabulary = sentencepiece.SentencePieceProcessor(str(folder / "vocabulary.model"))
pieces = [*vocabulary.encode(prompt)[: length - 1], 1]
ids, mask = np.zeros((1, length), np.int32), np.zeros((1, length), bool)
ids[0, : len(pieces)], mask[0, : len(pieces)] = pieces, True

request = {
    "text_ids": ids,
    "text_mask": mask,
    "frame_interval": np.array([1 / config["sampling"]["frame_rate"]], np.float32),  # seconds
    "source_size": np.array([[config["data"]["height"], config["data"]["width"]]], np.int32),
}
videos = jax.jit(sampler.call)(parameters, request, np.array([7], np.int32))  # a seed each
np.save(out, np.asarray(videos)[0])
print(f"{out}: {list(videos[0].shape)} by {jax.default_backend()}")
