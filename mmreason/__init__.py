"""mmreason: training multimodal reasoning models on the Hugging Face stack.

`import mmreason` is light: it loads no torch, no transformers and no TRL. Import the part you need, for example
`from mmreason.answers import verify` or `from mmreason.trainers.policy import PolicyTrainer`.
"""

import logging

__version__ = "0.1.0"

# peft imports bitsandbytes wherever it is installed, which then warns on a CPU that an optional kernel is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__all__ = ["__version__"]
