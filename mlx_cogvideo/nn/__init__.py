"""The networks: arrays in, arrays out. Nothing here depends on files, prompts or progress."""
