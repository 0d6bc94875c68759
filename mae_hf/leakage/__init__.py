"""Data leakage: which images of pre-training duplicate test or validation images, and what is done about them."""
