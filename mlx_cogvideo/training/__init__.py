"""LoRA training: clips, their latents, the loss and the trainer."""
