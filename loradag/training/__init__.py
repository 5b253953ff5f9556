"""The training loop: trl's SFTTrainer, resumable, guarded, deterministic."""
