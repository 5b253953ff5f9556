"""What is trained: LoRA and its variants."""
