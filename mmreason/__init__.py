"""mmreason: training multimodal reasoning models on the Hugging Face stack.

`import mmreason` is light: it loads no torch, no transformers and no TRL. Import the part you need, for example
`from mmreason.answers import verify` or `from mmreason.trainers.policy import PolicyTrainer`.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
