"""How models write tool calls, and how results are written back: one module for each form.

    openai    tool_calls of chat messages, and `<tool_call>` text as Hermes and Qwen chat templates have it
    react     Thought / Action / Action Input / Observation / Final Answer
    notes     `<<3*4=12>>`, the calculator notes of GSM8K
    programs  fenced python programs and their output (PoT, ToRA)

Each reads text into `ToolCall`s for `Toolbox.run` and renders results. Nothing is guessed: for what can't be read the
model gets an error in words.
"""
