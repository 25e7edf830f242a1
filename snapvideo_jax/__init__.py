"""Snap Video (Menapace et al., CVPR 2024) in JAX/Flax: text to video with the FIT transformer."""
