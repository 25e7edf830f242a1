"""Makes the files beside it: toy T5 encoders as transformers saves them, and their states.

  pip install torch transformers safetensors        (neither is in requirements-test.txt)
  python tests/golden/t5/make.py

Version 1.0 is saved whole, decoder included, in shards; version 1.1 as an encoder alone.
Made with transformers 5.23.0 and torch 2.13.0 on a CPU, float32.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
SIZES = dict(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_heads=3, num_layers=2)


def main() -> None:
    torch.manual_seed(0)
    make("v1_0", "relu", transformers.T5ForConditionalGeneration, max_shard_size="20KB")
    make("v1_1", "gated-gelu", transformers.T5EncoderModel)


def make(name: str, activation: str, kind: type, **saving) -> None:
    whole = kind(transformers.T5Config(**SIZES, feed_forward_proj=activation)).eval()
    with torch.no_grad():
        for parameter in whole.parameters():  # as initialized, the position biases hardly matter
            parameter.normal_(0.5, 0.5)
    whole.save_pretrained(HERE / name, **saving)
    (HERE / name / "generation_config.json").unlink(missing_ok=True)
    ids = np.random.default_rng(0).integers(2, SIZES["vocab_size"], (3, 160)).astype(np.int32)
    mask = np.arange(160) < np.array([[160], [90], [1]])
    with torch.no_grad():
        states = whole.encoder(torch.tensor(ids), torch.tensor(mask.astype(int)))[0]
    np.savez_compressed(HERE / name / "states.npz", ids=ids, mask=mask, states=states.numpy())


if __name__ == "__main__":
    main()
