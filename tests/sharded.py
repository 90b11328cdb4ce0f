"""What `torchrun` starts with weights spread over two processes: accelerate, which keeps FSDP for accelerators, is told that a CPU is one."""
import os
import sys

import accelerate.state
import processes as P
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from responserank.cli import main


def environment(config):
    """The variables that `accelerate launch --config_file` would set for FSDP."""
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(config), "script"]))
    return {k: v for k, v in prepare_multi_gpu_env(args).items() if "FSDP" in k}


def allow_cpu():
    """Let accelerate shard on the CPU."""
    State, plain = accelerate.state.AcceleratorState, accelerate.state.AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is None or self.distributed_type != DistributedType.MULTI_CPU: return
        self.distributed_type = accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        if self._mixed_precision != "no": fsdp_plugin.set_mixed_precision(self._mixed_precision)

    State.__init__ = init


class Catch(P.Catch):
    """Put the gradient together, and see that no process had all of it."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        parameters = list(model.parameters())
        self.gradient = torch.cat([p.grad.full_tensor().flatten() for p in parameters])
        assert 0.4 < sum(p.to_local().numel() for p in parameters) / sum(p.numel() for p in parameters) < 0.6


if __name__ == "__main__":
    os.environ.update(environment(sys.argv[1]))
    allow_cpu()
    if sys.argv[2] != "cases": sys.exit(main(sys.argv[2:]))
    P.Catch = Catch
    P.save_cases(sys.argv[3])
