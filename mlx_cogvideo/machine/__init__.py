"""What this machine computes right, and how fast."""
