import os

import torch

from loupe_ext import _C


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(torch=torch.__version__, cpu_target=_C.cpu_target(), cores=os.cpu_count())
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()
