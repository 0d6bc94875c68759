"""How fast mae_hf is beside what a user would take instead, contender against contender, in turns."""
