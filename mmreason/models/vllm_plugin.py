"""vLLM's entry point (`vllm.general_plugins`): composed models become known to it, as a class of its own.

vLLM calls `register` once in each of its processes. The model is in `mmreason.models.vllm_model` and is imported when
vLLM needs it, what it makes of pictures is in `mmreason.models.vllm_processing`.
"""

from __future__ import annotations

ARCHITECTURE = "MMReasonForConditionalGeneration"


def register() -> None:
    """Make composed checkpoints known to vLLM; again does nothing.

    It also lets vLLM's own LLaVA-like classes take the towers of today's transformers, see `accept_flat_towers`. A vLLM
    that was built for texts only goes on as it is, with a warning.
    """
    from vllm import ModelRegistry
    from vllm.logger import init_logger

    import mmreason.models  # noqa: F401  # transformers' Auto classes learn the configuration and the processor

    try:
        import vllm.multimodal.processing  # noqa: F401

        from mmreason.models.vllm_towers import accept_flat_towers

        accept_flat_towers()
    except ImportError as error:
        init_logger("vllm.plugins.mmreason").warning(
            "this build of vLLM can't take images (%s): it won't run %s; install the full vllm package",
            error,
            ARCHITECTURE,
        )
        return
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "mmreason.models.vllm_model:MMReasonForVLLM")
