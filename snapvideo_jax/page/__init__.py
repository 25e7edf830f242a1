"""A page in the browser: prompt and settings -> a video, with progress, and all that it made."""
