"""Models: loading any Hugging Face decoder or vision-language model, and tiny ones made by code."""
