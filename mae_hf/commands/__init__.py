"""The recipe of each command."""
