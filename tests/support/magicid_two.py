"""One of two processes of a tiny MMF training; the first writes what came out."""

from __future__ import annotations

import json
import sys

from support.magicid_tiny import EMPTY, TINY, Told, tiny_model, tiny_samples

from likeness.training.magicid.trainer import train

if __name__ == "__main__":
    run = train(Told(TINY, tiny_model(), tiny_samples(), EMPTY))
    if run.accelerator.is_main_process:
        told = {
            "processes": run.accelerator.num_processes,
            "curve": [report.loss for report in run.history],
            "average": {name: value.tolist() for name, value in run.average.values.items()},
        }
        with open(sys.argv[1], "w") as file:
            json.dump(told, file)
    run.accelerator.end_training()
