"""What goes in: example order, sources, decoding, text, and batches for one host."""
