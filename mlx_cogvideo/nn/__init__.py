"""The networks: arrays in, arrays out. Nothing here knows of files, prompts or progress."""
