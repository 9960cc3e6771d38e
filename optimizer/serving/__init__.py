"""The server: what the chain built, behind HTTP; it needs neither PyTorch nor transformers."""
