"""How fast detectors learn from random weights: detrkit's recipes and peers, on the same images, under one budget.

For instance, 14 minutes each on blood cells, two seeds: `python -m benchmarks.convergence --data ../shared/data
--data-sets bccd --recipes nano-plain,nano-fast --peers dfine-n --seeds 0,1 --minutes 14 --threads 2 --out DIR`.
What is complete in DIR is not made again, so that the same command goes on after Ctrl-C or a crash.
"""

from __future__ import annotations

import argparse
import fnmatch
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from benchmarks.convergence.budget import Budget
from benchmarks.convergence.competitors import Conditions, describe, kind_of, train
from benchmarks.convergence.data_sets import DATA_SETS, find_data
from benchmarks.convergence.peers import PEERS
from benchmarks.convergence.recipes import RECIPES
from benchmarks.convergence.report import page, write_report
from benchmarks.convergence.runs import Job, make, read_results, result_of
from detrkit.config import read_config
from detrkit.errors import DetrkitError, UsageError
from detrkit.files import make_folder

QUICK_BUDGET = Budget(epochs=1)
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the harness; the exit code of the process."""
    options = _parse(arguments)
    try:
        if options.list:
            print(listing())
            return 0
        if options.repeat is not None:
            return _repeat(options)
        return _compare(options)
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on with what is missing in {options.out}", file=sys.stderr)
        return INTERRUPTED
    except DetrkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def listing() -> str:
    """Names of everything that can be asked for."""
    lines = ["data sets:", *(f"  {name:20} {data.summary}" for name, data in DATA_SETS.items())]
    lines += ["recipes:"]
    lines += [
        f"  {name:20} {recipe.preset}, {recipe.recipe}; {describe(recipe.changes)}"
        for name, recipe in RECIPES.items()
    ]
    lines += ["peers:"]
    for name, peer in PEERS.items():
        summary = (peer.build.__doc__ or "").split("\n")[0]
        lines.append(f"  {name:20} {summary} {describe(peer.changes)}")
    return "\n".join(lines)


def _compare(options: argparse.Namespace) -> int:
    """Make every run that is missing; the report is written again after each."""
    jobs = _jobs(options)
    names = [job.name for job in jobs]
    out: Path = options.out
    if options.redo:
        for name in names:
            shutil.rmtree(out / "runs" / name, ignore_errors=True)
    missing = [job for job in jobs if result_of(job, out) is None]
    print(f"{len(jobs)} runs asked for, {len(jobs) - len(missing)} complete", file=sys.stderr)
    failed: dict[str, str] = {}
    for number, job in enumerate(missing, start=1):
        print(f"run {number} of {len(missing)}: {job.name}", file=sys.stderr, flush=True)
        try:
            result = make(job, out, lambda line: print(line, file=sys.stderr, flush=True))
        except UsageError:
            raise
        except (DetrkitError, RuntimeError, ValueError) as error:  # one that diverges shall not end all others
            failed[job.name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{job.name} failed: {failed[job.name]}", file=sys.stderr, flush=True)
        else:
            print(
                f"{job.name}: AP {result['AP']:.3f} after {result['epochs']} epochs", file=sys.stderr, flush=True
            )
        write_report(out, read_results(out), failed)
    results = read_results(out)
    write_report(out, results, failed)
    print(page([result for result in results if result["name"] in names], failed))
    print(f"written to {out}: table.md, curves.png, results.json, commands.txt and runs/")
    return 1 if failed else 0


def _jobs(options: argparse.Namespace) -> list[Job]:
    """What is asked for, by data set, then seed, so that a first comparison is there soon."""
    competitors = [*_names(options.recipes, RECIPES), *_names(options.peers, PEERS)]
    if not competitors:
        raise UsageError("no competitor is asked for; name some with --recipes or --peers, see --list")
    for name in competitors:
        kind_of(name)
    seeds = _numbers(options.seeds)
    if options.cpu_seconds and options.minutes:
        raise UsageError("give either --minutes or --cpu-seconds")
    minutes = options.cpu_seconds / 60 if options.cpu_seconds else options.minutes
    budget = QUICK_BUDGET if options.quick else Budget(minutes, options.epochs, cpu=bool(options.cpu_seconds))
    conditions = Conditions(
        precision=options.precision,
        device=options.device,
        threads=options.threads or torch.get_num_threads(),
        init=options.init,
    )
    out = make_folder(options.out)
    size = None if options.size is None else (options.size[0], options.size[1])
    data_sets = [
        find_data(name, options.data, out, size=size, quick=options.quick)
        for name in _names(options.data_sets, DATA_SETS)
    ]
    return [
        Job(competitor, files, seed, budget, conditions)
        for files in data_sets
        for seed in seeds
        for competitor in competitors
    ]


def _repeat(options: argparse.Namespace) -> int:
    """Train a peer again by the config of its run."""
    config = read_config(options.repeat)
    if options.threads:
        torch.set_num_threads(options.threads)
    train(config, make_folder(options.out))
    print(f"written to {options.out}")
    return 0


def _names(text: str, known: Iterable[str]) -> list[str]:
    """Names between commas, with the wildcards of a shell; all for ``all``, none for ``none``."""
    if text in ("all", "none"):
        return list(known) if text == "all" else []
    asked = [name.strip() for name in text.split(",") if name.strip()]
    every = list(known)
    return list(dict.fromkeys(name for one in asked for name in fnmatch.filter(every, one) or [one]))


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--seeds is {text!r}, expected whole numbers such as 0,1,2") from error


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name recipes, peers and data sets")
    parser.add_argument("--data", type=Path, help="folder that holds bccd_voc, chess_roboflow_coco, cones_yolo")
    parser.add_argument("--data-sets", default="demo", help="names between commas, or all")
    parser.add_argument("--recipes", default="none", help="names between commas, also nano-*, all or none")
    parser.add_argument("--peers", default="none", help="names between commas, all or none")
    parser.add_argument("--seeds", default="0", help="numbers between commas")
    parser.add_argument("--minutes", type=float, help="of training for each run; epochs are found by a rehearsal")
    parser.add_argument(
        "--cpu-seconds",
        type=float,
        help="of training for each run, in place of minutes: what else runs on the machine does not count. With "
        "--threads 1 two commands with an --out of their own can run side by side on two cores",
    )
    parser.add_argument("--epochs", type=int, help="for each run, in place of minutes")
    parser.add_argument("--threads", type=int, default=0, help="of torch on the CPU")
    parser.add_argument("--precision", choices=("32", "bf16", "16"), default="32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("SHORT", "LONG"), help="in pixels, for all data sets"
    )
    parser.add_argument("--init", default="none", help="starting weights of recipes: none, or a run to fine-tune")
    parser.add_argument("--quick", action="store_true", help="a few small images and one epoch: does it work?")
    parser.add_argument("--redo", action="store_true", help="make the runs asked for again, complete or not")
    parser.add_argument("--repeat", type=Path, metavar="CONFIG", help="train a peer again by its config.yaml")
    parser.add_argument("--out", type=Path, default=Path("convergence"), help="folder for everything that is made")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
