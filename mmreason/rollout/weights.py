"""The policy's full weights, one tensor at a time, under transformers' parameter names: what an engine is fed with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from trl.distributed import DistributedBackend

from mmreason.models.peft import refuse_unmergeable
from mmreason.models.value import CRITIC


def full_weights(model: Any, accelerator: Accelerator) -> Iterator[tuple[str, Tensor]]:
    """(name, full tensor) for every parameter of the policy, adapters merged in. Collective: all processes iterate.

    A merged weight is a copy and the base weight is put back bit for bit: merging into the weight and subtracting
    again, as `merge_adapter` / `unmerge_adapter` do, would move the frozen base by a rounding error at every step. At
    most one layer is held twice.

    Args:
        model: the prepared policy (DDP, DeepSpeed engine, FSDP2 or plain; PEFT or not).

    Raises:
        ConfigError: no weight can hold what the adapter does (virtual tokens, bottlenecks), or the base is quantised.

    Yields:
        Tensors that stay valid after the iteration has gone on (vLLM buffers them until a layer is complete).
    """
    backend = DistributedBackend(accelerator)
    unwrapped = accelerator.unwrap_model(model)
    if hasattr(unwrapped, "peft_config"):
        yield from _peft_weights(unwrapped, backend)
        return
    for name, param in unwrapped.named_parameters():
        if name.startswith(f"{CRITIC}."):  # a submodule of the policy that no engine knows
            continue
        with backend.gather_params([param]):
            yield name.replace("_checkpoint_wrapped_module.", ""), _materialise(param, backend)


def _materialise(param: Tensor, backend: DistributedBackend) -> Tensor:
    if hasattr(param, "full_tensor"):  # a DTensor: FSDP2, tensor parallel
        return param.full_tensor().detach()
    # Under ZeRO-3 the gathered storage is freed when the context closes, so what is handed out must be a copy.
    return param.detach().clone() if backend.is_zero3 else param.detach()


def _peft_weights(model: Any, backend: DistributedBackend) -> Iterator[tuple[str, Tensor]]:
    """Base parameters with their adapters merged, layer by layer; adapter tensors themselves are left out."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    refuse_unmergeable(model)
    base = model.get_base_model()
    handled: set[int] = set()
    for prefix, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield from _merged_layer(prefix, module, backend)
            handled |= {id(p) for p in module.parameters()}
        elif isinstance(module, ModulesToSaveWrapper):
            trained = module.modules_to_save[module.active_adapters[0]]
            for name, param in trained.named_parameters(prefix=prefix):
                with backend.gather_params([param]):
                    yield name, _materialise(param, backend)
            handled |= {id(p) for p in module.parameters()}
    for name, param in base.named_parameters():
        if id(param) not in handled:
            with backend.gather_params([param]):
                yield name, _materialise(param, backend)


def _merged_layer(prefix: str, layer: Any, backend: DistributedBackend) -> Iterator[tuple[str, Tensor]]:
    base_layer: nn.Module = layer.get_base_layer()
    params = dict(base_layer.named_parameters(recurse=False))
    with backend.gather_params(list(layer.parameters())), torch.no_grad():
        before = {name: param.detach().clone() for name, param in params.items()}
        layer.merge(safe_merge=True)
        merged = {name: _materialise(param, backend).clone() for name, param in params.items()}
        with warnings.catch_warnings():  # IA3 says that it is inexact; what was there before is put back below
            warnings.simplefilter("ignore")
            layer.unmerge()
        for name, param in params.items():
            param.copy_(before[name])
    for name, value in merged.items():
        yield f"{prefix}.{name}", value
