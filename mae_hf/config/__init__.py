"""What a command is given: frozen dataclasses, checked when they are made, and the parser of YAML and flags."""
