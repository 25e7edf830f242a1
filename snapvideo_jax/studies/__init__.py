"""What small training runs show: loss by size, and the paper's tables in miniature."""
