"""Does a reward for masks teach more than supervised fine-tuning at equal steps? docs/mask_reward.md."""
