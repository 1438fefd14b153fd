"""Rehearses tools/gpu_check.py on the null GPU: each of its stages runs to its end, and no number means anything.

python tests/null_gpu/rehearse.py --out outputs/gpu_rehearsal
python tests/null_gpu/rehearse.py --out /tmp/x --kill parity --fail generation     # the others must run all the same

Models and batches have their real sizes; the trainings are cut to a few steps. As a child process
(`rehearse.py STAGE FOLDER SECONDS --rehearsed`) it runs one stage, see pixel_sail/bench/gpu/child.py.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
KILLED, FAILED = "GPU_REHEARSAL_KILLS", "GPU_REHEARSAL_FAILS"  # variables that name a stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_rehearsal"))
    parser.add_argument("--minutes", type=int, default=40, help="for all stages together; compiling is done in earnest")
    parser.add_argument("--only", nargs="+", metavar="STAGE")
    parser.add_argument("--kill", default="", metavar="STAGE", help="its process gets SIGKILL after its first part")
    parser.add_argument("--fail", default="", metavar="STAGE", help="it raises an error")
    arguments = parser.parse_args()
    import null_library

    from pixel_sail.bench.gpu.runner import STAGES, check_gpu

    environment = null_library.environment(null_library.library()) | {
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # its workers would have no GPU
        KILLED: arguments.kill,
        FAILED: arguments.fail,
    }
    names, child = arguments.only or [*STAGES], (sys.executable, str(Path(__file__).resolve()))
    if not check_gpu(arguments.out, names, arguments.minutes, child, environment, rehearsed=True):
        raise SystemExit(1)


def run_stage(arguments: list[str]) -> None:
    os.environ.pop("LD_PRELOAD")  # what this process starts is no part of it
    import torch
    from torch.nn.attention import varlen

    torch.backends.cudnn.enabled = False  # the null GPU has none
    torch.backends.cuda.enable_cudnn_sdp(False)
    varlen._should_use_cudnn = lambda device: False
    import checks

    from pixel_sail.bench.gpu import child
    from pixel_sail.weights import engine_files

    engine_files._problem_of_steps = lambda steps, state: None  # what is read back from the null GPU is 0
    stage = arguments[0]
    shorten()
    with checks.finite_masks(), checks.without_comparing_ranks():
        if stage in (os.environ[KILLED], os.environ[FAILED]):
            spoil(stage)
        child.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the libraries that are replaced would be torn down


def shorten() -> None:
    """Models and batches as they are, but few steps, tokens and images: the host alone takes seconds for a step.

    The scratch run takes its way for too little time, with a reference on the CPU, which has all the other's steps.
    """
    from pixel_sail.bench.gpu import generation, scenes, scratch, speed, training

    speed.WARM_UP, speed.TIMED, speed.PROFILED = 2, 2, 1
    generation.FEW, generation.MANY, generation.REPEATS = 2, 6, 1
    scenes.IMAGES = 80
    scratch.PILOT_STEPS, scratch.SHORT_STEPS, scratch.WORKERS = 4, 4, 1
    scratch.SCORING_S = 1e6
    training.STEPS = 4
    training.OVERRIDES += ("train.steps=4", "train.save_every=2", "evaluate.max_images=2")


def spoil(stage: str) -> None:
    """Let a stage be killed, or fail, after its first line."""
    from pixel_sail.bench.gpu.checks import Report

    write = Report._write

    def spoiled(*arguments: object) -> None:
        write(*arguments)
        if stage == os.environ[KILLED]:
            os.kill(os.getpid(), signal.SIGKILL)
        Report._write = write
        raise RuntimeError("this stage was made to fail")

    Report._write = spoiled


if __name__ == "__main__":
    run_stage(sys.argv[1:]) if "--rehearsed" in sys.argv else main()
