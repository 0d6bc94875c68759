"""From the rows of a batch to a finished run folder."""
