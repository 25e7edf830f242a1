"""Prompts -> a folder of videos, from the parameters of a run."""
