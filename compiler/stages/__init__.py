"""The steps from a YAML to tokens, one file each; no stage imports another."""
