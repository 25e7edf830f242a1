"""Samples from an exported folder in PyTorch: torch, safetensors and sentencepiece.

  pip install torch safetensors sentencepiece
  python from_torch.py exported "a red circle moves left" video.npy

Runs on a GPU, in bfloat16, where there is one. Writes uint8 [frames, height, width, 3].
"""

import sys
from pathlib import Path

if len(sys.argv) != 4:
    sys.exit(__doc__)

import numpy as np  # noqa: E402
import torch  # noqa: E402

folder, prompt, out = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
sys.path.insert(0, str(folder))
import torch_model  # noqa: E402  it lies in the folder

gpu = torch.cuda.is_available()
device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
model = torch_model.load(folder, device, dtype)
batch = model.request([prompt])
videos = model.sample(batch, model.noise(seeds=[7]))
np.save(out, videos[0].cpu().numpy())
print(f"{out}: {list(videos[0].shape)} by {device}")
