"""The worker process: claims runs and sees each attempt through."""
