"""Trainers. The RL loop is `policy.PolicyTrainer`; its options are `arguments.PolicyConfig` (import-light)."""
