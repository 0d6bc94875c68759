"""An encoder with few labels: which labels, what they give, and what is written down about it."""
