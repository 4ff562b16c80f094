"""Parts of `data_builders.word_problems`."""
