"""The methods in plain PyTorch: no host, no files, no progress bar."""
