"""LoRA training: clips, their latents, the objective and the trainer."""
