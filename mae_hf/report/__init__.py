"""The report of a comparison: its pictures, one HTML page, the numbers as JSON."""
