"""The parts of `compare`: what was asked, what is read, what runs, what it is held against."""
