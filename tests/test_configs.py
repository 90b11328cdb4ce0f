"""The cluster files as far as a CPU can judge them: accelerate's own loader reads them, and its launcher knows every key."""
import dataclasses

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser


@pytest.mark.parametrize("name", ["fsdp", "deepspeed_zero3"])
def test_accelerate_knows_every_key(root, name):
    path = root / f"configs/{name}.yaml"
    written, config = yaml.safe_load(path.read_text()), load_config_from_file(str(path))
    options = {a.dest for a in launch_command_parser()._actions}
    fields = {f.name for f in dataclasses.fields(config)}
    assert set(written) <= fields
    for key in ("fsdp_config", "deepspeed_config"):
        assert set(written.get(key, {})) <= options, set(written[key]) - options
    assert config.num_processes == 8 and config.mixed_precision == "bf16"
    assert bool(config.fsdp_config) == (name == "fsdp") and bool(config.deepspeed_config) == (name != "fsdp")
