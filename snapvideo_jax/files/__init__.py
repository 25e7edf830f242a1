"""File formats: video, safetensors, published T5 weights."""
