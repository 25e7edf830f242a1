"""Formats of files: video, safetensors, published T5 weights."""
