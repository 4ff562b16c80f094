"""Tools that models call, and the sandbox that model-written code runs in."""
