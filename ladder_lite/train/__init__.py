"""GRPO: rows, rollouts, steps, and what guards them."""
