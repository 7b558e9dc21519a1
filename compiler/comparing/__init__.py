"""What comparisons are made of: measures, limits, taps and calls held against each other."""
