"""Model families: one file each, and the YAMLs that build them."""
