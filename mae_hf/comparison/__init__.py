"""Two arms of fine-tuning runs: read from their folders, checked, measured and set side by side."""
