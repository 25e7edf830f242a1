"""Entry points: flags in, one call, and every user's error as one line with its exit code."""
