"""What PPO and GRPO share: generation, rewards and advantages, losses, the loop."""
