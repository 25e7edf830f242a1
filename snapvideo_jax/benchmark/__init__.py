"""How fast FIT is beside the U-Net: running and timing, the rows of a report, and its pictures."""
