"""A laboratory for character-level GPTs on PyTorch Lightning."""
