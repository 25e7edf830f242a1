"""What goes in: the order of examples, their sources, clips, text, and batches for one host."""
