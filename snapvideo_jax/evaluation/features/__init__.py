"""Features of videos, frames and captions: published networks, and some without weights."""
