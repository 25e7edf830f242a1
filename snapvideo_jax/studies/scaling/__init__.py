"""How the loss of FIT and U-Net falls with their size."""
