"""The inside of the sandbox: a process that encloses itself, then forks a child for every program it is given.

Standard library only, and everything is imported before the enclosure closes. `main` is the process, `enclosure` its
namespaces and root directory, `landlock` and `seccomp` what a child is left with, `program` what runs in the child.
"""
