"""The settings of each command: frozen dataclasses that check their values, and the parser of YAML and flags."""
