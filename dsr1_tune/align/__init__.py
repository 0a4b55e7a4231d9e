"""After supervised training: reward models, DPO, KTO, PPO and GRPO."""
