"""Sampling from the policy: engines (HF generate, vLLM), log-probabilities of what they sampled, held-out accuracy."""
